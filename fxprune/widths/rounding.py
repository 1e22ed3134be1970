"""From the widths that a method wants to whole ones that use the budget up, the same way for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.exchange import exchanged
from fxprune.allocate.problem import Problem, Rungs
from fxprune.allocate.solve import fill
from fxprune.widths.convex import slopes_of
from fxprune.widths.setting import Choice, Setting

_ROUNDING = 1e-6  # relative; a width that a solver gives as 15.9999999 is 16


def rounded(setting: Setting, choice: Choice, ladders: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Whole widths near to those that a method wants: all limits hold, and no group could have one more step.

    Every width is rounded down to its ladder, or to what is nearest on it and down again where that breaks a limit; the
    group that is farthest below what was wanted gets a step, as long as one fits; and groups exchange units as long as
    that brings the logs of the widths nearer, in squares weighted as the objective weights them. The nearer is taken.

    ladders: the widths that each group may have, widest first.
    """
    names, slopes = list(ladders), slopes_of(setting.layers)
    wanted = np.array([choice.widths[name] for name in names])
    tables = [np.asarray(ladders[name], dtype=np.float64) for name in names]
    gaps = {
        name: (max(slopes[name], 1.0) * np.log(table / width) ** 2).tolist()
        for name, table, width in zip(names, tables, wanted, strict=True)
    }
    problem = Problem(setting.cost, dict(ladders), gaps, setting.limits)

    def shortfall(_: Problem, rungs: Rungs) -> NDArray[np.float64]:
        return np.asarray(wanted / [table[rung] for table, rung in zip(tables, rungs, strict=True)])

    below = [_floor(ladders[name], width) for name, width in zip(names, wanted, strict=True)]
    about = [int(np.argmin(gaps[name])) for name in names]
    found = []
    for start in (np.array(below), np.array(about)):
        rungs = exchanged(problem, fill(problem, _within(problem, start, wanted), shortfall))
        found.append(fill(problem, rungs, shortfall))
    return problem.at(min(found, key=problem.goal))


def _floor(ladder: Sequence[int], width: float) -> int:
    """The rung of the widest width that is not above `width`."""
    return next((rung for rung, found in enumerate(ladder) if found <= width * (1 + _ROUNDING)), len(ladder) - 1)


def _within(problem: Problem, rungs: Rungs, wanted: NDArray[np.float64]) -> Rungs:
    """Rungs that keep the limits: a solver may be off by a rounding, so the group that is widest for what was wanted
    goes one down, again and again."""
    while not problem.within(problem.totals(rungs)):
        widths = np.array([table[rung] for table, rung in zip(problem.width_tables, rungs, strict=True)])
        can = rungs + 1 < problem.lengths
        rungs = rungs + (np.arange(len(rungs)) == np.argmax(np.where(can, widths / wanted, -np.inf)))
    return rungs
