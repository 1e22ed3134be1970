"""The multiple-choice knapsack: one choice for each item, of least total value, within a limit on the total weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def frontier(values: Sequence[Floats], weights: Sequence[Floats], limit: float, levels: int = 4096) -> Integers:
    """The best choices for every limit up to `limit` at once, by dynamic programming over a table of weights.

    values, weights: of the choices of each item, [choices]; of any sign.
    levels: each weight is rounded to one of so many between the least possible total and the limit. So a solution keeps
        a limit only up to half a level an item, and the totals of the rows must be checked.

    Returns the choices, [solutions, items]: a row for each total value that some limit reaches, the least value first;
    empty where even the least weights exceed the limit. Source: Kellerer, Pferschy, Pisinger, Knapsack Problems (2004),
    section 11.5.
    """
    units = _rounded(weights, limit, levels)
    if units is None:
        return np.empty((0, len(values)), dtype=np.int64)
    best = np.zeros(levels)
    picks = []
    for value, heavy in zip(values, units, strict=True):
        best, pick = _with_item(best, value, heavy)
        picks.append(pick)
    found, places = np.unique(best, return_index=True)
    return _traced(picks, units, places[np.isfinite(found)])


def _rounded(weights: Sequence[Floats], limit: float, levels: int) -> list[Integers] | None:
    """Weights above each item's least, in levels; `levels` for what no limit allows. None where nothing fits."""
    span = limit - sum(float(weight.min()) for weight in weights)
    if span < 0:
        return None
    scale = max(span / (levels - 1), 1e-300)
    return [np.minimum(np.rint((weight - weight.min()) / scale), levels).astype(np.int64) for weight in weights]


def _with_item(best: Floats, value: Floats, units: Integers) -> tuple[Floats, NDArray[np.int16]]:
    """The least values with one more item, for every limit, and which of its choices reaches them."""
    added, pick = np.full_like(best, np.inf), np.zeros(len(best), dtype=np.int16)
    for choice, unit in enumerate(units.tolist()):
        if unit < len(best):
            reached = best[: len(best) - unit] + value[choice]
            better = reached < added[unit:]
            np.copyto(added[unit:], reached, where=better)
            np.copyto(pick[unit:], choice, where=better)
    return added, pick


def _traced(picks: Sequence[NDArray[np.int16]], units: Sequence[Integers], places: Integers) -> Integers:
    """The choices that lead to `places` of the last table, [solutions, items]."""
    chosen = np.empty((len(places), len(picks)), dtype=np.int64)
    for item in reversed(range(len(picks))):
        chosen[:, item] = picks[item][places]
        places = places - units[item][chosen[:, item]]
    return chosen
