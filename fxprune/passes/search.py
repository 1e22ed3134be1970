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

TRIALS = 7  # each shrinks and reconstructs a copy
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
    logarithms of both are close to proportional.

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
        progress(trial + 1, TRIALS, error)
        found.take_note(plan, error, _flops(gm, plan))
        low, high = (guess, high) if error <= budget.max_error else (low, guess)
        guess = _next(guess, math.log(budget.max_error / max(error, 1e-12)), low, high)
    progress(TRIALS, TRIALS, found.least_error)
    return found.plan()


class _Found:
    """The smallest plan within the error, and how small errors can be."""

    def __init__(self, most: float) -> None:
        self.most, self.least_error = most, math.inf
        self._best: tuple[float, Plan] | None = None

    def take_note(self, plan: Plan, error: float, cost: float) -> None:
        """Remember the plan if it is the best so far."""
        self.least_error = min(self.least_error, error)
        if error <= self.most and (self._best is None or cost < self._best[0]):
            self._best = (cost, plan)

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
