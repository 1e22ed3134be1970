"""Alignment: widths that hardware likes, where they cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.methods import Method, price
from fxprune.allocate.problem import Problem, Rungs
from fxprune.allocate.solve import fill, solved, trim
from fxprune.errors import BudgetError, PlanError

LIKED = (16, 8)  # AVX-512 computes 16 numbers at once, AVX2 8; tensor cores multiply tiles of 8 or 16
FREE = 1.02  # of what is to be least, error or FLOPs, at the best widths: no more may alignment cost
WORTH = 1.2  # the same, where time is what counts


def aligned(problem_of: Callable[[int], Problem], method: Method, timed: bool) -> tuple[Problem, Rungs]:
    """The widths that a method finds among the largest multiples that are free, or else among all.

    They use the budget up: the last few groups may be out of step.

    problem_of: the problem with ladders of multiples of a number of channels.
    timed: whether the latency is limited. Then alignment may cost more, and single units are not used to fill up: they
        save no time, whatever a polynomial says.
    """
    problem = problem_of(1)
    best = solved(problem, method)
    for multiple in LIKED:
        try:
            coarse = problem_of(multiple)
            rungs = problem.rungs(coarse.at(solved(coarse, method)))
        except (BudgetError, PlanError):  # nothing so coarse keeps the limits, or the method finds nothing on it
            continue
        rungs = rungs if timed else _used_up(problem, rungs, coarse)
        if problem.goal(rungs) <= (WORTH if timed else FREE) * problem.goal(best):
            return problem, rungs
    return problem, best


def _used_up(problem: Problem, rungs: Rungs, coarse: Problem) -> Rungs:
    """Single units for what is left of a budget: to a group that is out of step already, or to that of least cost."""

    def few(problem: Problem, rungs: Rungs) -> NDArray[np.float64]:
        widths, spent, more = problem.at(rungs), problem.totals(rungs), problem.totals(problem.wider(rungs))
        odd = [width not in coarse.ladders[name] for name, width in widths.items()]
        return np.where(odd, np.inf, -price(problem, spent, more) * np.array(list(widths.values())))

    return fill(problem, rungs, few) if problem.max_error is None else trim(problem, rungs)
