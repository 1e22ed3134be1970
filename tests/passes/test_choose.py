"""Choose: hands on a plan, touches nothing, and says what is missing."""

from __future__ import annotations

import pytest
import torch

import fxprune as fp
from fxprune.errors import BudgetError, CalibrationError
from fxprune.passes.base import clone
from fxprune.passes.choose import Choose
from tests.networks import build, calls, images, modified

BUDGET = fp.Budget(flops=0.5)


def test_only_the_metadata_changes() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    text, before = calls(gm), gm(images())
    step = Choose(BUDGET, images(batch=32))
    assert not modified(step(gm))
    assert calls(gm) == text
    assert torch.equal(gm(images()), before)
    handed = gm.meta["fxprune"]
    widths = {name: len(units) for name, units in handed["plan"].kept.items()}
    assert handed["cost"].evaluate(widths)["flops"] <= 0.5 * handed["cost"].evaluate()["flops"]


def test_a_second_run_keeps_the_plan() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    Choose(BUDGET, images(batch=32))(gm)
    plan = gm.meta["fxprune"]["plan"]
    Choose(fp.Budget(flops=0.9), images(batch=32))(gm)
    assert gm.meta["fxprune"]["plan"] is plan


def test_the_plan_remembers_the_example() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    Choose(BUDGET, importance="magnitude", allocation="uniform")(gm)
    assert gm.meta["fxprune"]["plan"].inputs == (((2, 3, 8, 8), "float32"),)


def test_data_is_asked_for_where_it_is_needed() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    with pytest.raises(CalibrationError, match="recipe='magnitude'"):
        Choose(BUDGET)(gm)


def test_names_are_refused_before_anything_is_captured() -> None:
    with pytest.raises(fp.PlanError, match="importance 'luck' is not known; there are: magnitude, second_order, "):
        Choose(BUDGET, importance="luck")
    with pytest.raises(fp.PlanError, match="allocation 'luck' is not known; there are: uniform, greedy, dynamic"):
        fp.pipeline("fast", budget=BUDGET, allocation="luck")
    for wrong in ({"recipe": "luck"}, {"importance": "luck"}, {"multiple_of": 0}, {"max_ratio": 2}):
        with pytest.raises(fp.PlanError):
            fp.prune(None, budget=BUDGET, **wrong)  # type: ignore[arg-type]


def test_a_graph_with_a_plan_for_another_budget_says_so() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    Choose(fp.Budget(params=0.8), importance="magnitude")(gm)
    with pytest.raises(BudgetError, match=r"the plan of this graph costs .* made for another budget"):
        Choose(fp.Budget(params=0.3), importance="magnitude")(gm)
