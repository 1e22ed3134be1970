"""Allocation: how many units each group keeps, so that the network fits a budget and loses least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fxprune.allocate import dynamic_programming, heuristics  # noqa: F401 (their allocators register on import)
from fxprune.allocate.align import LIKED, aligned, in_units
from fxprune.allocate.frozen import check_widths, frozen_groups, patterns_of
from fxprune.allocate.methods import METHODS, allocator, method_called
from fxprune.allocate.problem import Costs, Problem, Widths, error_at, foretold, ladder, ladder_between
from fxprune.allocate.solve import solved
from fxprune.budget import Budget
from fxprune.closed_form.removal import Removal
from fxprune.types import Coupling

__all__ = [
    "LIKED",
    "MAX_RATIO",
    "METHODS",
    "Costs",
    "Problem",
    "Widths",
    "allocate",
    "allocator",
    "check_widths",
    "foretold",
    "frozen_groups",
    "ladder",
    "ladder_between",
    "method_called",
    "patterns_of",
]

MAX_RATIO = 0.95  # of any one group; its last units carry the whole signal, and no curve foretells their loss


def allocate(
    cost: Costs,
    coupling: Coupling,
    removals: Mapping[str, Removal],
    budget: Budget,
    *,
    method: str = "greedy",
    multiple_of: int | None = 1,
    freeze: Iterable[str] = (),
    max_ratio: float = MAX_RATIO,
) -> Widths:
    """A width for each group: the budget is met, and missed by less than the cheapest step that could be kept.

    With `Budget(max_error=)` the FLOPs are as few as the method finds with a foretold error (`foretold`) of at most
    that, and no group could give another unit; the other limits hold as well.

    removals: for each group, the error after each round of removal.
    method: "dynamic" (planned over all groups), "greedy" (least error for the cost that is saved), "uniform" (one
        ratio for all groups), or one that was registered with `allocator`.
    multiple_of: kept widths are multiples of this, or whole; None takes multiples of 16 or 8 for all groups but a few,
        where that is free, or nearly so where the latency is limited (`aligned`).
    freeze: names or globs of parameters, modules or groups that must not shrink.
    max_ratio: the largest share of any one group that may go, below 1; one unit of each block always stays.

    Raises BudgetError when the budget cannot be reached, with how far one can go; PlanError for an unknown name.
    """
    allocating = method_called(method)
    check_widths(multiple_of, max_ratio)
    held = frozen_groups(coupling, freeze)

    def problem_of(multiple: int) -> Problem:
        steps = {
            group.name: multiple if multiple_of is not None else in_units(multiple, group) for group in coupling.groups
        }
        ladders = {
            group.name: ladder(group, steps[group.name], 0.0 if group.name in held else max_ratio)
            for group in coupling.groups
        }
        errors = {
            name: [error_at(removals[name], width) for width in widths] if len(widths) > 1 else [0.0]
            for name, widths in ladders.items()
        }
        limits = budget.absolute(cost.evaluate({}, budget.kinds))
        problem = Problem(cost, ladders, errors, limits, budget.max_error)
        problem.check_reachable()
        return problem

    if not coupling.groups:
        return problem_of(1).at(np.zeros(0, dtype=np.int64))  # raises where the limits cannot be met
    if multiple_of is None:
        problem, rungs = aligned(problem_of, allocating, timed=budget.latency is not None)
    else:
        problem = problem_of(multiple_of)
        rungs = solved(problem, allocating)
    return problem.at(rungs)
