"""Allocation: how many units each group keeps, so that the network fits a budget and loses least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol

from fxprune.closed_form.removal import Removal
from fxprune.errors import BudgetError, PlanError
from fxprune.types import Budget, ChannelGroup, Coupling

Widths = dict[str, int]
MAX_RATIO = 0.95  # of any one group; its last units carry the whole signal, and no curve foretells their loss


class Costs(Protocol):
    """What allocation needs of a cost: flops and params at given widths; groups that are left out are whole."""

    def evaluate(self, widths: Mapping[str, int]) -> Mapping[str, int]:
        """The cost of each kind."""


def allocate(
    cost: Costs,
    coupling: Coupling,
    removals: Mapping[str, Removal],
    budget: Budget,
    *,
    method: str = "greedy",
    multiple_of: int = 1,
    freeze: Iterable[str] = (),
    max_ratio: float = MAX_RATIO,
) -> Widths:
    """A width for each group: the budget is met, and missed by less than the cheapest step that could be kept.

    removals: for each group, the error after each round of removal.
    method: "greedy" (least error for the cost that is saved) or "uniform" (one ratio for all groups).
    multiple_of: kept widths are multiples of this, or whole.
    freeze: names or globs of parameters, modules or groups that must not shrink.
    max_ratio: the largest share of any one group that may go, below 1; one unit of each block always stays.

    Raises BudgetError when the budget cannot be reached, with how far one can go; PlanError for an unknown name.
    """
    if method not in METHODS:
        raise PlanError(f"allocation {method!r} is not known; there are: {', '.join(METHODS)}")
    if not 0 <= max_ratio <= 1 or multiple_of < 1:
        raise PlanError(f"max_ratio={max_ratio} must be in [0, 1] and multiple_of={multiple_of} at least 1")
    held = frozen_groups(coupling, freeze)
    ladders = {
        group.name: _ladder(group, multiple_of, 0.0 if group.name in held else max_ratio) for group in coupling.groups
    }
    problem = _Problem(cost, ladders, removals, budget)
    problem.check_reachable()
    descend, worth = METHODS[method]
    return _fill(problem, descend(problem), worth)


def frozen_groups(coupling: Coupling, freeze: Iterable[str]) -> set[str]:
    """The groups that a name or glob of a parameter, module or group freezes.

    Raises PlanError for one that matches nothing.
    """
    frozen: set[str] = set()
    patterns = [freeze] if isinstance(freeze, str) else list(freeze)
    for pattern in patterns:
        names = {name for name in (*coupling.param_fields, *coupling.by_name) if _matches(name, pattern)}
        if not names:
            raise PlanError(f"freeze={pattern!r} matches no parameter, module or group")
        for group in coupling.groups:
            if group.name in names or any(axis.param in names for axis in group.axes):
                frozen.add(group.name)
    return frozen


def _matches(name: str, pattern: str) -> bool:
    """Whether `pattern` names `name` itself or a module above it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _ladder(group: ChannelGroup, multiple_of: int, max_ratio: float) -> list[int]:
    """The widths that a group may have, widest first."""
    step = math.lcm(group.step, multiple_of)
    least = max(group.step, math.ceil(round((1 - max_ratio) * group.width, 9)))
    below = [width for width in range(step, group.width, step) if width >= least]
    return [group.width, *reversed(below)]


class _Problem:
    """Ladders of widths with their errors, costs and limits."""

    def __init__(
        self, cost: Costs, ladders: Mapping[str, list[int]], removals: Mapping[str, Removal], budget: Budget
    ) -> None:
        self.cost, self.ladders = cost, ladders
        self.whole = {name: ladder[0] for name, ladder in ladders.items()}
        self.dense = cost.evaluate(self.whole)
        self.limits = budget.absolute(self.dense)
        self.errors = {
            name: [_error_at(removals[name], ladder[0], width) for width in ladder] if len(ladder) > 1 else [0.0]
            for name, ladder in ladders.items()
        }

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether every limit holds."""
        spent = self.cost.evaluate(widths)
        return all(spent[kind] <= limit for kind, limit in self.limits.items())

    def at(self, rungs: Mapping[str, int]) -> Widths:
        """Widths from positions on the ladders."""
        return {name: self.ladders[name][rung] for name, rung in rungs.items()}

    def check_reachable(self) -> None:
        """Raise BudgetError unless the smallest network fits."""
        least = self.cost.evaluate({name: ladder[-1] for name, ladder in self.ladders.items()})
        for kind, limit in self.limits.items():
            if least[kind] > limit:
                raise BudgetError(
                    f"{kind}={limit:,.0f} ({limit / self.dense[kind]:.1%} of {self.dense[kind]:,}) cannot be reached: "
                    f"the smallest is {least[kind]:,} ({least[kind] / self.dense[kind]:.1%}); what is frozen or held, "
                    "max_ratio and multiple_of decide how far one can go"
                )


def _error_at(removal: Removal, width: int, kept: int) -> float:
    return removal.errors[(width - kept) // removal.step]


def _uniform(problem: _Problem) -> Widths:
    """The largest one ratio for all groups that fits."""
    ladders = problem.ladders

    def at(ratio: float) -> Widths:
        return {name: min(ladder, key=lambda width: abs(width - ratio * ladder[0])) for name, ladder in ladders.items()}

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.fits(at(middle)) else (low, middle)
    return at(1.0) if problem.fits(at(1.0)) else at(low)


def _greedy(problem: _Problem) -> Widths:
    """Again and again a step down where it adds least error for the cost it saves; a step is judged by the best
    descent that it begins, so that a flat stretch behind a steep one is seen."""
    rungs = dict.fromkeys(problem.ladders, 0)
    slopes = {name: _slope(problem, name, 0) for name in rungs}
    widths = problem.at(rungs)
    spent = problem.cost.evaluate(widths)
    while any(spent[kind] > limit for kind, limit in problem.limits.items()):
        best, best_ratio = "", math.inf
        for name, rung in rungs.items():
            ladder = problem.ladders[name]
            if rung + 1 < len(ladder):
                fewer = problem.cost.evaluate({**widths, name: ladder[rung + 1]})
                saved = _saving(problem, spent, fewer) / (ladder[rung] - ladder[rung + 1])
                ratio = slopes[name] / saved if saved > 0 else math.inf
                if ratio < best_ratio or not best:
                    best, best_ratio = name, ratio
        rungs[best] = min(rungs[best] + _stride(problem, best), len(problem.ladders[best]) - 1)
        slopes[best] = _slope(problem, best, rungs[best])
        widths = problem.at(rungs)
        spent = problem.cost.evaluate(widths)
    return widths


def _stride(problem: _Problem, name: str) -> int:
    """Rungs that one step goes down: long ladders are taken in about a hundred steps."""
    return max(1, len(problem.ladders[name]) // 96)


def _slope(problem: _Problem, name: str, rung: int) -> float:
    """The least error added for each unit removed, over all descents that begin at `rung`."""
    ladder, errors = problem.ladders[name], problem.errors[name]
    descents = [
        (errors[below] - errors[rung]) / (ladder[rung] - ladder[below]) for below in range(rung + 1, len(ladder))
    ]
    return min(descents, default=math.inf)


def _saving(problem: _Problem, spent: Mapping[str, int], fewer: Mapping[str, int]) -> float:
    """What a step saves of the costs that are still too high, each relative to its limit."""
    return sum((spent[k] - fewer[k]) / limit for k, limit in problem.limits.items() if spent[k] > limit)


def _fill(problem: _Problem, widths: Widths, worth: Worth) -> Widths:
    """Take units back, the worthiest first, until none fits any more."""
    rungs = {name: problem.ladders[name].index(width) for name, width in widths.items()}
    while True:
        widths = problem.at(rungs)
        wider = {name: {**widths, name: problem.ladders[name][rung - 1]} for name, rung in rungs.items() if rung > 0}
        fitting = [name for name, more in wider.items() if problem.fits(more)]
        if not fitting:
            return widths
        rungs[max(fitting, key=lambda name: worth(problem, widths, name))] -= 1


def _relief(problem: _Problem, widths: Widths, name: str) -> float:
    """The error that the next unit of a group takes away, for what it costs."""
    ladder, errors = problem.ladders[name], problem.errors[name]
    rung = ladder.index(widths[name])
    spent, more = (problem.cost.evaluate({**widths, name: ladder[at]}) for at in (rung, rung - 1))
    price = sum((more[kind] - spent[kind]) / limit for kind, limit in problem.limits.items())
    return (errors[rung] - errors[rung - 1]) / max(price, 1e-12)


def _shortness(problem: _Problem, widths: Widths, name: str) -> float:
    """The share of a group that is gone."""
    return 1 - widths[name] / problem.ladders[name][0]


Worth = Callable[[_Problem, Widths, str], float]

METHODS: dict[str, tuple[Callable[[_Problem], Widths], Worth]] = {
    "uniform": (_uniform, _shortness),
    "greedy": (_greedy, _relief),
}
