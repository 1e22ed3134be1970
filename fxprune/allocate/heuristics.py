"""The plain allocators: one ratio for all groups, and steepest descent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.methods import allocator, shortness
from fxprune.allocate.problem import ERROR, Problem, Rungs, Widths


@allocator("uniform", worth=shortness)
def uniform(problem: Problem) -> Widths:
    """The largest one ratio for all groups that fits."""

    def at(ratio: float) -> Widths:
        return {
            name: min(ladder, key=lambda width: abs(width - ratio * ladder[0]))
            for name, ladder in problem.ladders.items()
        }

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.fits(at(middle)) else (low, middle)
    return at(1.0) if problem.fits(at(1.0)) else at(low)


@allocator("greedy", bounds_error=True)
def greedy(problem: Problem) -> Widths:
    """Again and again a step down where it adds least error for the cost it saves; a step is judged by the best
    descent that it begins, so that a flat stretch behind a steep one is seen. Where the error is limited, it then goes
    on for the FLOPs alone, with the groups that can still give something."""
    rungs = np.zeros_like(problem.lengths)
    slopes = np.array([_slope(problem, group, 0) for group in range(len(rungs))])
    while True:
        down = np.minimum(rungs + _strides(problem), problem.lengths - 1)
        rows = np.where(np.eye(len(rungs), dtype=bool), down, rungs)
        now, then = problem.totals(rungs), problem.totals(rows)
        over = {kind: limit for kind, limit in problem.limits.items() if now[kind] > limit}
        possible = down > rungs
        if not over and problem.max_error is not None:
            over = {"flops": 1.0}
            possible &= (then[ERROR] <= problem.bounds[ERROR]) & (then["flops"] < now["flops"])
        if not over or not possible.any():
            return problem.at(rungs)
        saved = np.sum([(now[kind] - then[kind]) / limit for kind, limit in over.items()], axis=0)
        best = _steepest(slopes * _drops(problem, rungs, down), saved, possible)
        rungs = rows[best]
        slopes[best] = _slope(problem, best, int(rungs[best]))


def _steepest(added: NDArray[np.float64], saved: NDArray[np.float64], possible: NDArray[np.bool_]) -> int:
    """The possible step that adds least error for the cost that it saves."""
    ratio = np.divide(added, saved, out=np.full(len(added), np.inf), where=(saved > 0) & possible)
    return int(np.argmin(ratio)) if np.isfinite(ratio).any() else int(np.argmax(possible))


def _drops(problem: Problem, rungs: Rungs, down: Rungs) -> NDArray[np.int64]:
    """Units that each step takes."""
    return np.array([table[a] - table[b] for table, a, b in zip(problem.width_tables, rungs, down, strict=True)])


def _strides(problem: Problem) -> Rungs:
    """Rungs that one step goes down: long ladders are taken in about a hundred steps."""
    return np.maximum(1, problem.lengths // 96)


def _slope(problem: Problem, group: int, rung: int) -> float:
    """The least error added for each unit removed, over all descents that begin at `rung`; 0 at the end."""
    widths, errors = problem.width_tables[group], problem.error_tables[group]
    if rung + 1 == len(widths):
        return 0.0
    return float(((errors[rung + 1 :] - errors[rung]) / (widths[rung] - widths[rung + 1 :])).min())
