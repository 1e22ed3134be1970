"""Configure: sets widths before training, hands on a plan, touches nothing, and says what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.errors import BudgetError
from fxprune.passes.base import clone
from fxprune.passes.configure import Configure, units_of
from fxprune.types import ChannelGroup
from fxprune.widths import METHODS
from tests.networks import NETWORKS, build, calls, images, modified

BUDGET = fp.Budget(params=0.5)


def configured(name: str = "Residual", **options: Any) -> torch.fx.GraphModule:
    gm = clone(fp.capture(build(name), images()))
    Configure(**{"budget": BUDGET, **options})(gm)
    return gm


def test_only_the_metadata_changes() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    text, before = calls(gm), gm(images())
    assert not modified(Configure(BUDGET)(gm))
    assert calls(gm) == text
    assert torch.equal(gm(images()), before)


def test_a_second_run_keeps_the_plan() -> None:
    gm = configured()
    plan = gm.meta["fxprune"]["plan"]
    Configure(fp.Budget(params=0.9))(gm)
    assert gm.meta["fxprune"]["plan"] is plan


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("grow", [False, True])
def test_the_plan_fits_the_budget_and_no_group_could_have_more(name: str, grow: bool) -> None:
    gm = configured(name, grow=grow)
    handed = gm.meta["fxprune"]
    limit = 0.5 * handed["cost"].evaluate()["params"]
    widths = {group.name: group.width for group in handed["coupling"].groups}
    widths |= handed["plan"].counts
    assert widths == handed["configured"].widths
    assert handed["cost"].evaluate(widths)["params"] <= limit
    for group in handed["coupling"].groups:
        more = {**widths, group.name: widths[group.name] + group.step}
        whole = widths[group.name] == group.width and not grow
        assert whole or handed["cost"].evaluate(more)["params"] > limit, group.name


def test_the_sums_of_logs_fall_from_program_to_program() -> None:
    found = configured("Dense").meta["fxprune"]["configured"].objective
    assert found["channels"] == pytest.approx(found["wanted widths"])
    assert found["whole widths"] < found["channels"] < 0
    assert found["single weights"] < 0
    assert found["SynExp"] < 0


def test_the_seed_draws_the_units_and_not_the_widths() -> None:
    plans = [configured("Plain", seed=seed).meta["fxprune"]["plan"].kept for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert {name: len(units) for name, units in plans[0].items()} == {name: len(u) for name, u in plans[2].items()}


def test_what_is_frozen_stays_and_max_ratio_holds() -> None:
    widths = (
        configured("Plain", budget=fp.Budget(params=0.7), freeze=["conv1"], max_ratio=0.5)
        .meta["fxprune"]["configured"]
        .widths
    )
    assert widths["conv1.weight"] == 6
    assert widths["conv2.weight"] >= 2
    assert widths["fc1.weight"] >= 3


def test_multiples_of_eight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 24, 3), nn.ReLU(), nn.Conv2d(24, 4, 3))
    gm = clone(fp.capture(model, images()))
    Configure(fp.Budget(params=0.6), multiple_of=8)(gm)
    widths = gm.meta["fxprune"]["configured"].widths
    assert set(widths.values()) <= {8, 16, 24, 32}
    assert widths != {"0.weight": 32, "2.weight": 24}


def test_units_are_dropped_and_repeated_in_the_same_order() -> None:
    group = ChannelGroup("g", 4, (), (), 1, ())
    assert units_of(group, [2, 0, 3, 1], 2) == (1, 3)
    assert units_of(group, [2, 0, 3, 1], 4) == (0, 1, 2, 3)
    assert units_of(group, [2, 0, 3, 1], 9) == (0, 0, 1, 1, 1, 2, 2, 3, 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_below_one_unit_a_group_is_refused_alike_by_all_methods(method: str) -> None:
    data = (images(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(BudgetError, match="params=5 cannot be reached: the smallest network has"):
        configured(budget=fp.Budget(params=5), method=method, data=data, model=build("Residual"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "magic"}, fp.PlanError, "method 'magic' is not known; there are: "),
        ({"budget": fp.Budget(max_error=0.1)}, BudgetError, "max_error= needs a trained network"),
        ({"multiple_of": 0}, fp.PlanError, "multiple_of=0 must be a whole number, at least 1"),
        ({"max_ratio": 2}, fp.PlanError, "max_ratio=2 must be in"),
        ({"freeze": ["nothing*"]}, fp.PlanError, "freeze='nothing\\*' matches no parameter"),
        ({"method": "snip"}, fp.PlanError, "method='snip' looks at a loss: give data="),
        ({"freeze": ["*"]}, BudgetError, "params=.* cannot be reached"),
    ],
)
def test_mistakes_say_what_to_do(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        configured(**options)


def test_a_network_that_cannot_shrink_is_refused() -> None:
    gm = clone(fp.capture(nn.Linear(3, 2), torch.zeros(2, 3)))
    with pytest.raises(fp.PlanError, match="nothing in this network can shrink: .*an output of the network"):
        Configure(BUDGET)(gm)
