"""Where units lie in a tensor, as outer products of positions."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor


def rectangles(units: Tensor, width: int) -> Iterator[tuple[int, tuple[tuple[int, ...] | None, ...]]]:
    """Each unit below `width` with the outer products of positions that it covers in `units`.

    units: the unit of each position, of size 1 where nothing varies. A product has an entry for each dimension: None
        (all of it) or a tuple of positions.
    """
    varying = [dim for dim, size in enumerate(units.shape) if size > 1]
    found = ((units >= 0) & (units < width)).nonzero()
    cells: dict[int, dict[int, list[tuple[int, ...]]]] = {}
    for unit, position in zip(units[tuple(found.T)].tolist(), found[:, varying].tolist(), strict=True):
        cells.setdefault(unit, {}).setdefault(position[-1], []).append(tuple(position[:-1]))
    for unit in sorted(cells):
        lines: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for last, rows in cells[unit].items():
            lines.setdefault(tuple(rows), []).append(last)
        for cell_rows, columns in lines.items():
            for block in _outer_products(cell_rows):
                positions = dict(zip(varying, (*block, tuple(columns)), strict=True))
                yield unit, tuple(positions.get(dim) for dim in range(units.ndim))


def _outer_products(rows: tuple[tuple[int, ...], ...]) -> list[tuple[tuple[int, ...], ...]]:
    """`rows` as one outer product of positions where it is one, else row by row."""
    sides = tuple(tuple(sorted(set(side))) for side in zip(*rows, strict=True))
    whole = math.prod(map(len, sides)) == len(rows)
    return [sides] if whole else [tuple((position,) for position in row) for row in rows]
