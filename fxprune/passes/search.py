"""Search: the smallest network with at most a given error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import fx

from fxprune.calibrate.judge import output_error
from fxprune.errors import BudgetError
from fxprune.passes.base import CALIBRATION, COST, PLAN, clone, state
from fxprune.passes.fuse import Fuse
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.shrink import Shrink
from fxprune.types import Budget, Plan

TRIALS = 7  # each shrinks and reconstructs a copy


def smallest_plan(
    gm: fx.GraphModule,
    planned: Callable[[Budget], Plan],
    budget: Budget,
    seed: int,
    progress: Callable[[int, int, float], None],
) -> Plan:
    """The plan of least FLOPs whose error on the held-out images, after least squares, is within `budget.max_error`.

    The curves only foretell errors, so the foretold error is searched for which the measured one comes out right: the
    logarithms of both are close to proportional.

    planned: the plan for a budget whose max_error is a foretold error.

    Raises BudgetError where the limits on costs leave no such plan.
    """
    assert budget.max_error is not None
    low, high = -math.inf, math.inf  # logarithms of foretold errors that are known to be small enough, and too large
    guess = math.log(budget.max_error)
    best: Plan | None = None
    best_cost = math.inf
    errors = []
    for trial in range(TRIALS):
        plan = planned(replace(budget, max_error=math.exp(guess)))
        error = corrected_error(gm, plan, seed)
        errors.append(error)
        progress(trial + 1, TRIALS, error)
        cost = _flops(gm, plan)
        if error <= budget.max_error:
            low = guess
            if cost < best_cost:
                best, best_cost = plan, cost
        else:
            high = guess
        guess = _next(guess, math.log(budget.max_error / max(error, 1e-12)), low, high)
    if best is None:
        raise BudgetError(
            f"max_error={budget.max_error} cannot be met: the least error found is {min(errors):.4f}; "
            "allow more of it, or more FLOPs and parameters"
        )
    return best


def corrected_error(gm: fx.GraphModule, plan: Plan, seed: int) -> float:
    """The held-out error of the outputs when `plan` is applied to a copy and least squares corrects it."""
    trial = clone(gm)
    state(trial)[PLAN] = plan
    for step in (PinSizes(plan.heads), Shrink(), Reconstruct(seed=seed), Fuse()):
        step(trial)
    return output_error(gm, trial, state(gm)[CALIBRATION])


def _next(guess: float, shift: float, low: float, high: float) -> float:
    """A step by what the last error was off, or half way between the bounds where that leaves them."""
    wanted = guess + max(-3.0, min(3.0, shift))
    if low < wanted < high:
        return wanted
    if math.isinf(low):
        return high - 1.0
    return low + 1.0 if math.isinf(high) else (low + high) / 2


def _flops(gm: fx.GraphModule, plan: Plan) -> float:
    spent: int = state(gm)[COST].evaluate({name: len(units) for name, units in plan.kept.items()})["flops"]
    return spent
