"""Search: of some plans the best, and the smallest network with at most a given error, as least squares tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.budget import Budget
from fxprune.calibrate.judge import judges, output_error
from fxprune.errors import BudgetError
from fxprune.passes.base import CALIBRATION, COST, COUPLING, DENSE, release_images, state, teacher
from fxprune.passes.fuse import Fuse
from fxprune.passes.reconstruct import FEW_ROWS, Reconstruct
from fxprune.passes.shrink import shrink
from fxprune.progress import Measured
from fxprune.types import Plan

TRIALS, FINER = 6, 3  # by foretold errors, then by FLOPs; each shrinks and corrects a copy
LEAST = 2e-3  # of the FLOPs, that are worth another trial
CLOSE = 1.05  # times the least error: nearer to it, a hundred held-out images cannot tell


def smallest_plan(
    gm: fx.GraphModule,
    planned: Callable[[Budget], Plan],
    budget: Budget,
    error_of: Callable[[Plan], float],
    progress: Measured,
) -> Plan:
    """The plan of least FLOPs whose error on the held-out images is within `budget.max_error`.

    The curves only foretell errors, so the foretold error is searched for which the measured one comes out right: the
    logarithms of both are close to proportional. Between the smallest plan that is found and the largest that errs too
    much, limits on the FLOPs are halved then: widths that are multiples leave wide steps.

    planned: the plan for a budget whose max_error is a foretold error. error_of: the measured error of a plan.

    Raises BudgetError where the limits on costs leave no such plan.
    """
    assert budget.max_error is not None
    if not judges(gm, state(gm)[COUPLING]):
        raise BudgetError(
            "max_error= needs floating-point outputs, or values of which they are made: give flops= or params= instead"
        )
    found = _Found(budget.max_error)
    if budget.limits:  # the error that the limits alone cost: where that is too much, nothing smaller helps
        plan = planned(replace(budget, max_error=None))
        found.take_note(plan, error_of(plan), _flops(gm, plan))
    low, high = -math.inf, math.inf  # logarithms of foretold errors that are known to be small enough, and too large
    guess = math.log(budget.max_error)
    for trial in range(TRIALS):
        try:
            plan = planned(replace(budget, max_error=math.exp(guess)))
        except BudgetError:  # within the limits, no error as small is foretold
            low, guess = guess, _next(guess, 1.0, guess, high)
            continue
        error = error_of(plan)
        progress(trial + 1, TRIALS + FINER, error)
        found.take_note(plan, error, _flops(gm, plan))
        low, high = (guess, high) if error <= budget.max_error else (low, guess)
        guess = _next(guess, math.log(max(1e-12, budget.max_error / max(error, 1e-12))), low, high)
    for trial in range(FINER):
        limit = found.between()
        if limit is None:
            break
        try:
            plan = planned(replace(budget, max_error=None, flops=limit))
        except BudgetError:  # the other limits leave nothing as small
            break
        found.take_note(plan, error_of(plan), _flops(gm, plan), limit)
        progress(TRIALS + trial + 1, TRIALS + FINER, found.least_error)
    progress(TRIALS + FINER, TRIALS + FINER, found.least_error)
    return found.plan()


class _Found:
    """The smallest plan within the error, and how small errors can be."""

    def __init__(self, most: float) -> None:
        self.most, self.least_error = most, math.inf
        self._best: tuple[float, Plan] | None = None
        self._too_small: list[float] = []  # costs at which plans err too much

    def take_note(self, plan: Plan, error: float, cost: float, limit: float = math.inf) -> None:
        """Remember the plan if it is the best so far. `limit`: on the cost, where that made the plan."""
        self.least_error = min(self.least_error, error)
        if error > self.most:
            self._too_small.append(min(cost, limit))
        elif self._best is None or cost < self._best[0]:
            self._best = (cost, plan)
        elif math.isfinite(limit):
            self._too_small.append(limit)  # it is a plan that is known

    def between(self) -> int | None:
        """Half way from the largest cost that is too small to the best; None where there is nothing between."""
        below = max((cost for cost in self._too_small if self._best and cost < self._best[0]), default=None)
        if self._best is None or below is None or self._best[0] - below < LEAST * self._best[0]:
            return None
        return int((below + self._best[0]) / 2)

    def plan(self) -> Plan:
        """The best plan. Raises BudgetError where there is none."""
        if self._best is None:
            raise BudgetError(
                f"max_error={self.most} cannot be met: the least error found is {self.least_error:.4g}; "
                "allow more of it, or larger limits beside it"
            )
        return self._best[1]


def last_good(gm: fx.GraphModule, plans: Sequence[Plan], seed: int, progress: Measured) -> int:
    """The last of the plans whose error on the held-out images, after least squares, is within `CLOSE` of the least.

    The last of all where they are the same, or nothing can tell: there are no images, or no values to judge by.
    """
    found = state(gm)
    last = len(plans) - 1
    if all(plan == plans[last] for plan in plans) or CALIBRATION not in found or not judges(gm, found[COUPLING]):
        return last
    errors: list[float] = []
    for index, plan in enumerate(plans):
        first = plans.index(plan)  # several may be the same
        errors.append(errors[first] if first < index else corrected_error(gm, plan, seed))
        progress(len(errors), len(plans), min(errors))
    return max(index for index, error in enumerate(errors) if error <= CLOSE * min(errors))


def trial_error(gm: fx.GraphModule, plan: Plan, steps: Sequence[PassBase]) -> float:
    """The held-out error of the outputs when `plan` is applied to a copy and `steps` correct it."""
    trial = shrink(gm, plan)
    for step in steps:
        step(trial)
    error = output_error(teacher(trial), trial, state(gm)[CALIBRATION])
    release_images(trial, state(trial)[DENSE])  # caches of torch.fx may keep a graph for a while
    return error


def corrected_error(gm: fx.GraphModule, plan: Plan, seed: int) -> float:
    """The same where least squares corrects it."""
    return trial_error(gm, plan, (Reconstruct(rows_per_input=FEW_ROWS, seed=seed), Fuse()))


def _next(guess: float, shift: float, low: float, high: float) -> float:
    """A step by what the last error was off, or half way between the bounds where that leaves them."""
    wanted = guess + max(-3.0, min(3.0, shift))
    if low < wanted < high:
        return wanted
    if math.isinf(low):
        return high - 1.0
    return low + 1.0 if math.isinf(high) else (low + high) / 2


def _flops(gm: fx.GraphModule, plan: Plan) -> float:
    spent: int = state(gm)[COST].evaluate(plan.counts)["flops"]
    return spent
