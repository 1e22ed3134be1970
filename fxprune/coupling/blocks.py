"""Blocks: rows that must keep equally many units, so that every tensor is still an array after removal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fxprune.coupling.partition import Partition
from fxprune.types import Field

Family = tuple[tuple[int, ...], ...]

_CROSSING = "its rows cannot be kept equally long"


class Solution(NamedTuple):
    """What makes all constraints hold.

    families: blocks of ids; those of one family keep equally many. No id is in two blocks.
    crossing: rows for which no such blocks exist.
    """

    families: tuple[Family, ...]
    crossing: tuple[Tensor, ...]


def join_crossings(partition: Partition, constrained: Sequence[Field], axes: Sequence[int]) -> None:
    """Join the rows of each field for which keeping equally many cannot be said by blocks of units.

    axes: a number for the parameter axes that each unit lies on. The units of a block lie on the same, so that sizes
        and costs follow from how many are kept, whichever they are.
    """
    for rows in solve(constrained, axes).crossing:
        partition.union(rows, rows[:1], _CROSSING)


def rows_of(item: Field) -> Tensor:
    """The distinct rows of a field: [rows, positions], each a line along its shrinking axis."""
    lines = item.ids.movedim(item.axis, -1)
    rows: Tensor = torch.unique(lines.reshape(-1, lines.shape[-1]), dim=0)
    return rows


def solve(constrained: Sequence[Field], axes: Sequence[int]) -> Solution:
    """Blocks from the constraints that rows keep equally many units, those with the shortest rows first."""
    distinct = {(rows.shape, rows.numpy().tobytes()): rows for rows in map(rows_of, constrained) if len(rows) > 1}
    families: dict[int, list[tuple[int, ...]]] = {}  # blocks by a number of the family
    home: dict[int, tuple[int, int]] = {}  # the family of a unit, and its block there
    finest = sorted(distinct.values(), key=lambda rows: (rows.shape[1], -len(rows)))
    crossing = [rows for rows in finest if not _fits(rows, axes, families, home)]
    return Solution(tuple(tuple(sorted(blocks)) for blocks in families.values()), tuple(crossing))


def _fits(
    rows: Tensor,
    axes: Sequence[int],
    families: dict[int, list[tuple[int, ...]]],
    home: dict[int, tuple[int, int]],
) -> bool:
    """Make families say that these rows keep equally many; False where they cannot."""
    sets = list(dict.fromkeys(frozenset(Counter(row[row != 0].tolist()).items()) for row in rows))
    counts = [dict(row) for row in sets]
    if len({sum(row.values()) for row in counts}) > 1:  # other units would have to make up for the permanent ones
        return False
    blocks = [_whole_blocks(row, families, home) for row in counts]
    free = [_free_units(row, axes, home) for row in counts]
    if any(found is None for found in blocks) or len({_sizes(row) for row in free}) > 1:
        return False
    fresh = [unit for row in free for _, units in row for unit in units]
    if len(set(fresh)) < len(fresh):  # a unit in several rows
        return False
    needed = [found for found in blocks if found is not None]
    if len({frozenset(found.items()) for found in needed}) > 1 and not _merge(needed, families, home):
        return False
    for parts in zip(*free, strict=True):
        number = max(families, default=0) + 1
        families[number] = [tuple(sorted(units)) for _, units in parts]
        for index, block in enumerate(families[number]):
            home.update(dict.fromkeys(block, (number, index)))
    return True


Part = tuple[int, list[int]]


def _free_units(row: Mapping[int, int], axes: Sequence[int], home: Mapping[int, tuple[int, int]]) -> list[Part]:
    """Units that are in no block yet, in parts that lie on the same axes, with how often they occur in the row."""
    found: dict[tuple[int, int], list[int]] = {}
    for unit, times in row.items():
        if unit not in home:
            found.setdefault((times, axes[unit]), []).append(unit)
    parts = sorted(found.items(), key=lambda part: (part[0][0], len(part[1]), part[0][1]))
    return [(times, units) for (times, _), units in parts]


def _sizes(row: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    return tuple((times, len(units)) for times, units in row)


def _whole_blocks(
    row: Mapping[int, int],
    families: Mapping[int, list[tuple[int, ...]]],
    home: Mapping[int, tuple[int, int]],
) -> Counter[int] | None:
    """How many blocks of each family a row is made of; None where it holds a part of one."""
    found: Counter[int] = Counter()
    for number, index in {home[unit] for unit in row if unit in home}:
        times = {row.get(unit, 0) for unit in families[number][index]}
        if len(times) > 1 or 0 in times:
            return None
        found[number] += times.pop()
    return found


def _merge(
    needed: Sequence[Counter[int]],
    families: dict[int, list[tuple[int, ...]]],
    home: dict[int, tuple[int, int]],
) -> bool:
    """Make the families in which rows differ one; whether that makes the rows equal."""
    names = sorted({number for found in needed for number in found})
    lengths = {len(block) for number in names for block in families[number]}
    if len({sum(found.values()) for found in needed}) > 1 or len(lengths) > 1:
        return False
    first, *others = names
    for other in others:
        families[first] += families.pop(other)
    for index, block in enumerate(families[first]):
        home.update(dict.fromkeys(block, (first, index)))
    return True
