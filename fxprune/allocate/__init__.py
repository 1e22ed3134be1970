"""Allocation: how many units each group keeps, so that the network fits a budget and loses least."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fxprune.allocate import dynamic_programming, heuristics  # noqa: F401 (their allocators register on import)
from fxprune.allocate.align import LIKED, aligned
from fxprune.allocate.capacity import heeding_parameters
from fxprune.allocate.frozen import check_widths, frozen_groups, patterns_of
from fxprune.allocate.methods import METHODS, allocator, method_called
from fxprune.allocate.problem import Costs, Problem, Widths, error_at, foretold, ladder_between, ladders_of
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
    "check_reachable",
    "check_widths",
    "foretold",
    "frozen_groups",
    "ladder_between",
    "ladders_of",
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
    capacity: float = 0.0,
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
    capacity: how much the parameters that stay count beside the foretold error (`heeding_parameters`); 0 looks at the
        error alone, and so does a budget that limits the parameters.

    Raises BudgetError when the budget cannot be reached, with how far one can go; PlanError for an unknown name.
    """
    allocating = method_called(method)
    asked = _Asked.of(cost, coupling, budget, multiple_of, freeze, max_ratio)
    problem = asked.problem(removals, budget.max_error)
    if not coupling.groups:
        return problem.at(np.zeros(0, dtype=np.int64))
    most = budget.max_error
    if capacity and "params" not in asked.limits:
        widths = problem.at(solved(problem, allocating))
        removals = heeding_parameters(removals, coupling, cost, widths, capacity)
        most = None if most is None else foretold(removals, widths)
    problem_of = partial(asked.problem, removals, most)
    if multiple_of is None:
        problem, rungs = aligned(problem_of, allocating, timed=budget.latency is not None)
    else:
        problem = problem_of()
        rungs = solved(problem, allocating)
    return problem.at(rungs)


def check_reachable(
    cost: Costs,
    coupling: Coupling,
    budget: Budget,
    *,
    multiple_of: int | None = 1,
    freeze: Iterable[str] = (),
    max_ratio: float = MAX_RATIO,
) -> None:
    """Raise what `allocate` would raise of these options, whatever the errors are: before they are measured.

    A latency is left out: it is not known before.
    """
    asked = _Asked.of(cost, coupling, budget, multiple_of, freeze, max_ratio)
    known = {kind: limit for kind, limit in asked.limits.items() if kind != "latency"}
    replace(asked, limits=known).problem({}, None)


@dataclass(frozen=True)
class _Asked:
    """What every problem of a call has in common."""

    cost: Costs
    coupling: Coupling
    limits: Mapping[str, float]
    multiple_of: int | None
    held: Collection[str]
    max_ratio: float

    @classmethod
    def of(
        cls,
        cost: Costs,
        coupling: Coupling,
        budget: Budget,
        multiple_of: int | None,
        freeze: Iterable[str],
        max_ratio: float,
    ) -> _Asked:
        """From what a user says. Raises PlanError for an unknown name and a number out of range."""
        check_widths(multiple_of, max_ratio)
        limits = budget.absolute(cost.evaluate({}, budget.kinds))
        return cls(cost, coupling, limits, multiple_of, frozen_groups(coupling, freeze), max_ratio)

    def problem(self, removals: Mapping[str, Removal], max_error: float | None, multiple: int = 1) -> Problem:
        """With these curves, flat where there are none; on ladders of multiples of some channels, where the user names
        none.

        Raises BudgetError where it cannot be solved.
        """
        ladders = ladders_of(self.coupling, self.multiple_of, self.held, self.max_ratio, multiple)
        errors = {
            name: [error_at(removals[name], width) for width in widths]
            if len(widths) > 1 and removals
            else [0.0] * len(widths)
            for name, widths in ladders.items()
        }
        problem = Problem(self.cost, ladders, errors, self.limits, max_error)
        problem.check_reachable()
        return problem
