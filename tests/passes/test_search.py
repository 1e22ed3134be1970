"""Search: the smallest plan within an error, also where the widths leave wide steps."""

from __future__ import annotations

import math

import pytest

import fxprune as fp
from fxprune.capture import capture
from fxprune.cost import cost
from fxprune.coupling import analyze
from fxprune.passes.base import CALIBRATION, COST, COUPLING, clone, state
from fxprune.passes.search import smallest_plan
from fxprune.progress import unheard
from fxprune.types import Plan
from tests.networks import build, images


@pytest.mark.parametrize("too_small", [0.05, math.inf], ids=["finite", "infinite"])
def test_between_the_steps_of_foretold_errors_flops_are_limited(too_small: float) -> None:
    gm = clone(capture(build("Plain"), (images(),)))
    coupling = analyze(gm)
    spent = cost(gm, coupling)
    state(gm).update({COUPLING: coupling, COST: spent, CALIBRATION: None})
    group = max(coupling.groups, key=lambda group: group.width)

    def keeping(units: int) -> Plan:
        return Plan({group.name: range(units)})

    def planned(budget: fp.Budget) -> Plan:
        """By a foretold error nearly all units or one; by FLOPs as many as fit."""
        if budget.max_error is not None:
            return keeping(group.width - 1 if budget.max_error < 0.1 else 1)
        fitting = (
            units
            for units in range(group.width, 0, -1)
            if spent.evaluate(keeping(units).counts)["flops"] <= (budget.flops or math.inf)
        )
        return keeping(next(fitting))

    def error_of(plan: Plan) -> float:
        """A twentieth for each unit that is gone, and of too many all there is."""
        gone = group.width - plan.counts[group.name]
        return 0.05 * gone if gone <= 2 else too_small * gone

    found = smallest_plan(gm, planned, fp.Budget(max_error=0.1), error_of, unheard)
    assert found == keeping(group.width - 2)
