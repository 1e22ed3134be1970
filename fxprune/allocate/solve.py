"""From an allocator to widths that use a budget up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fxprune.allocate.methods import Method, Worth
from fxprune.allocate.problem import Problem, Rungs
from fxprune.errors import BudgetError, PlanError


def solved(problem: Problem, method: Method) -> Rungs:
    """The widths of least error within the limits; where the error is limited, those of fewest FLOPs."""
    free = replace(problem, max_error=None)
    start = allotted(free, method) if problem.limits else np.zeros_like(problem.lengths)
    return start if problem.max_error is None else smallest(problem, method, start)


def allotted(problem: Problem, method: Method) -> Rungs:
    """The widths that the method chooses, and what units are left over given back."""
    widths = method.allocator(problem)
    if not problem.fits(widths):
        raise PlanError(f"allocator {method.allocator.__name__!r} chose widths that exceed a limit")
    return fill(problem, problem.rungs(widths), method.worth)


def smallest(problem: Problem, method: Method, start: Rungs) -> Rungs:
    """The widths of fewest FLOPs that the method finds with an error of at most `problem.max_error`.

    start: widths of least error within the limits on the costs. Raises BudgetError where even they exceed max_error.
    """
    error = float(problem.totals(start)["error"])
    if not problem.within(problem.totals(start)):
        limits = " and ".join(f"{kind}={limit:,.0f}" for kind, limit in problem.limits.items())
        raise BudgetError(
            f"max_error={problem.max_error:g} and {limits} contradict: within the limits an error of {error:.3g} is "
            "foretold; allow more of either"
        )
    found = problem.rungs(method.allocator(problem)) if method.bounds_error else _searched(problem, method, start)
    return trim(problem, min(start, found, key=problem.goal))


def _searched(problem: Problem, method: Method, start: Rungs, rounds: int = 16) -> Rungs:
    """The widths for the smallest limit on FLOPs at which a method that looks at costs alone keeps the error."""
    free = replace(problem, max_error=None)
    low, high = (float(free.totals(rungs)["flops"]) for rungs in (problem.lengths - 1, start))
    best = start
    for _ in range(rounds):
        middle = (low + high) / 2
        rungs = allotted(replace(free, limits={**problem.limits, "flops": middle}), method)
        if problem.within(problem.totals(rungs)):
            best, high = rungs, middle
        else:
            low = middle
    return best


def fill(problem: Problem, rungs: Rungs, worth: Worth) -> Rungs:
    """Give units back, the worthiest first, until none fits any more."""
    while True:
        wider = problem.wider(rungs)
        fitting = problem.within(problem.totals(wider)) & (rungs > 0)
        if not fitting.any():
            return rungs
        rungs = wider[int(np.argmax(np.where(fitting, worth(problem, rungs), -np.inf)))]


def trim(problem: Problem, rungs: Rungs) -> Rungs:
    """Take units, those first that save most FLOPs for the error they add, until one more would add too much."""
    while True:
        narrower = problem.narrower(rungs)
        now, then = problem.totals(rungs), problem.totals(narrower)
        saved = now["flops"] - then["flops"]
        fitting = problem.within(then) & (saved > 0)
        if not fitting.any():
            return rungs
        added = np.maximum(then["error"] - now["error"], 1e-30)
        rungs = narrower[int(np.argmax(np.where(fitting, saved / added, -np.inf)))]
