"""The allocator that plans: dynamic programming over all groups and budgets at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.exchange import best_of, exchanged
from fxprune.allocate.heuristics import greedy
from fxprune.allocate.methods import allocator, relief
from fxprune.allocate.problem import ERROR, Problem, Rungs, Totals, Widths
from fxprune.allocate.solve import fill
from fxprune.closed_form.knapsack import frontier

CHOICES = 97  # of each group in one table; a longer ladder is thinned out until the region is small enough
BEYOND = 0.25  # past a limit: groups that move in opposite directions cost less than the sum of what each costs


@allocator("dynamic", bounds_error=True)
def dynamic(problem: Problem) -> Widths:
    """The widths of least error under all limits, or of least FLOPs where the error is limited.

    A cost is a polynomial in the widths, nearly linear in each: about given widths it is the sum of what each group
    alone changes. That problem is a multiple-choice knapsack, solved for all budgets at once; of its solutions the one
    that is best at the true cost is where the next table is built, over a smaller region whenever none is better. In
    the end groups exchange units two by two. It starts from the greedy widths, so it is never worse than those.
    """
    rungs = problem.rungs(greedy(problem))
    if problem.max_error is None:
        rungs = fill(problem, rungs, relief)
    return problem.at(exchanged(problem, descended(problem, rungs)))


def descended(problem: Problem, rungs: Rungs) -> Rungs:
    """Widths that no table over any region about them improves."""
    radius = int(problem.lengths.max(initial=0))
    while radius > 0:
        better = best_of(problem, rungs, _solutions(problem, rungs, radius))
        if np.array_equal(better, rungs):
            radius //= 2
        rungs = better
    return rungs


def _solutions(problem: Problem, rungs: Rungs, radius: int) -> Rungs:
    """Solutions of the knapsack about `rungs`, for all budgets and mixes of the limits: [solutions, groups]."""
    choices = [_region(int(rung), radius, int(length)) for rung, length in zip(rungs, problem.lengths, strict=True)]
    changes, here = _changes(problem, rungs, choices), problem.totals(rungs)
    least = {kind: sum(float(change[kind].min()) for change in changes) for kind in problem.bounds}
    spans = {
        kind: (1 + (kind != ERROR) * BEYOND) * max(bound - float(here[kind]) - least[kind], 1e-30)
        for kind, bound in problem.bounds.items()
    }
    values = [change[problem.objective] for change in changes]
    found = []
    for shares in _mixes(len(spans)):
        scales = {kind: share / spans[kind] for kind, share in zip(spans, shares, strict=True)}
        weights = [
            sum(scale * (change[kind] - change[kind].min()) for kind, scale in scales.items()) for change in changes
        ]
        found.append(frontier(values, weights, 1.0))
    picks = np.concatenate(found)
    return np.stack([choice[pick] for choice, pick in zip(choices, picks.T, strict=True)], axis=1)


def _mixes(kinds: int) -> list[tuple[float, ...]]:
    """Shares of each limit in one that stands for all (a surrogate), in quarters; each by itself among them."""
    return [mix for mix in product((0.0, 0.25, 0.5, 0.75, 1.0), repeat=kinds) if sum(mix) == 1]


def _region(rung: int, radius: int, length: int) -> NDArray[np.int64]:
    """Rungs at most `radius` from `rung`, and that one, thinned out to about CHOICES."""
    low, high = max(0, rung - radius), min(length - 1, rung + radius)
    spread = np.rint(np.linspace(low, high, min(CHOICES, high - low + 1))).astype(np.int64)
    return np.union1d(spread, [rung])


def _changes(problem: Problem, rungs: Rungs, choices: Sequence[NDArray[np.int64]]) -> list[Totals]:
    """What each group alone changes of every total at each of its choices, [choices]."""
    rows = np.repeat(rungs[None], sum(map(len, choices)), axis=0)
    start = 0
    for group, choice in enumerate(choices):
        rows[start : start + len(choice), group] = choice
        start += len(choice)
    here, there = problem.totals(rungs), problem.totals(rows)
    cuts = np.cumsum([len(choice) for choice in choices])[:-1]
    parts = {kind: np.split(total - here[kind], cuts) for kind, total in there.items()}
    return [{kind: part[group] for kind, part in parts.items()} for group in range(len(choices))]
