"""Choose: hands on a plan, touches nothing, and says what is missing."""

from __future__ import annotations

import pytest
import torch
from torch import fx

import fxprune as fp
from fxprune import demo
from fxprune.errors import BudgetError, CalibrationError
from fxprune.passes.base import clone
from fxprune.passes.choose import Choose
from fxprune.passes.search import CLOSE, corrected_error, last_good
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
    widths = handed["plan"].counts
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
    with pytest.raises(CalibrationError, match="or 'magnitude'"):
        Choose(BUDGET)(gm)


def test_of_several_capacities_the_last_that_errs_about_as_little_as_any() -> None:
    demo_images = demo.load()[0].images[:256]

    def chosen(*capacities: float) -> tuple[fx.GraphModule, fp.Plan]:
        gm = clone(fp.capture(demo.trained(), demo_images[:2]))
        Choose(fp.Budget(flops=0.4), demo_images, allocation="dynamic", capacities=capacities)(gm)
        return gm, gm.meta["fxprune"]["plan"]

    told: list[tuple[int, int, float]] = []
    graphs, plans = zip(*(chosen(capacity) for capacity in (0.0, 2.0, 40.0)), strict=True)
    gm = graphs[0]
    params = [gm.meta["fxprune"]["cost"].evaluate(plan.counts)["params"] for plan in plans]
    assert params == sorted(set(params)), "the more capacity counts, the more parameters stay"
    errors = [corrected_error(gm, plan, 0) for plan in plans]
    good = [error <= CLOSE * min(errors) for error in errors]
    assert True in good and False in good, "the test wants a difference"
    last = max(index for index, is_good in enumerate(good) if is_good)
    assert last_good(gm, plans, 0, lambda *news: told.append(news)) == last
    assert told == [(done, 3, min(errors[:done])) for done in (1, 2, 3)]
    assert chosen(0.0, 2.0, 40.0)[1] == plans[last]


def test_without_images_the_last_capacity_is_taken() -> None:
    plans = []
    for capacities in ((0.0, 2.0), (2.0,)):
        gm = clone(fp.capture(build("Residual"), images()))
        Choose(BUDGET, importance="magnitude", capacities=capacities)(gm)
        plans.append(gm.meta["fxprune"]["plan"])
    assert plans[0] == plans[1]


@pytest.mark.parametrize("wrong", [(), (-1.0,), (float("nan"),)])
def test_capacities_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(fp.PlanError, match="capacities=.*: one or more numbers of at least 0 are needed"):
        Choose(BUDGET, capacities=wrong)


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
