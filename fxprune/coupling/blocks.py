"""Blocks: rows that must keep equally many units, so that every tensor is still an array after removal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.coupling.partition import Partition
from fxprune.types import Field

Family = tuple[tuple[int, ...], ...]

_CROSSING = "its rows cannot be kept equally long"


def rows_of(item: Field) -> Tensor:
    """The distinct rows of a field: [rows, positions], each a line along its shrinking axis."""
    lines = item.ids.movedim(item.axis, -1)
    rows: Tensor = torch.unique(lines.reshape(-1, lines.shape[-1]), dim=0)
    return rows


def equal_rows(partition: Partition, constrained: Sequence[Field], axes: Mapping[int, Hashable]) -> None:
    """Join along the rows of each field for which keeping equally many cannot be said by blocks of units.

    axes: on which parameter axes each unit lies. The units of a block lie on the same, so that sizes and costs follow
        from how many are kept, whichever they are.
    """
    families: dict[Family, Tensor] = {}
    for item in constrained:
        rows = rows_of(item)
        family = _family(rows)
        if family is None or any(len({axes.get(unit) for unit in row}) > 1 for row in family):
            partition.union(rows, rows[:1], _CROSSING)
        else:
            families.setdefault(family, rows)
    finest = finest_families(tuple(families))
    for family, rows in families.items():
        if not any(_refines(fine, family) for fine in finest):
            partition.union(rows, rows[:1], _CROSSING)


def block_families(constrained: Sequence[Field]) -> tuple[Family, ...]:
    """The families of blocks, as tuples of ids, that imply all constraints; none shares an id with another."""
    families = (_family(rows_of(item)) for item in constrained)
    return finest_families(tuple(dict.fromkeys(family for family in families if family)))


def finest_families(families: tuple[Family, ...]) -> tuple[Family, ...]:
    """Families that are not implied by a finer one; of two that cross, the first."""
    finest: list[Family] = []
    for family in sorted(families, key=len, reverse=True):
        ids = {unit for row in family for unit in row}
        if not any(ids & {unit for row in fine for unit in row} for fine in finest):
            finest.append(family)
    return tuple(finest)


def _family(rows: Tensor) -> Family | None:
    """Rows as disjoint sets of units of one size and multiplicity, or None where they are not."""
    seen: set[int] = set()
    family = []
    repeats: set[int] = set()
    for row in rows:
        units, counts = row[row != 0].unique(return_counts=True)
        repeats |= set(counts.tolist())
        family.append(tuple(units.tolist()))
    distinct = list(dict.fromkeys(family))
    for units_of_row in distinct:
        if seen & set(units_of_row):
            return None
        seen |= set(units_of_row)
    if len(repeats) != 1 or len({len(row) for row in family}) != 1 or len({int((r == 0).sum()) for r in rows}) != 1:
        return None
    return tuple(sorted(distinct))


def _refines(fine: Family, coarse: Family) -> bool:
    """Whether equal rows of `fine` imply equal rows of `coarse`."""
    home = {unit: index for index, row in enumerate(fine) for unit in row}
    inside = []
    for row in coarse:
        pieces = {home.get(unit) for unit in row}
        if None in pieces or sum(len(fine[piece]) for piece in pieces if piece is not None) != len(row):
            return False
        inside.append(len(pieces))
    return len(set(inside)) == 1
