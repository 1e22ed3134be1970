"""Capacity: parameters that leave make a width dearer, as far as the budget does not limit them already."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from torch import nn

import fxprune as fp
from fxprune.allocate import allocate, foretold
from fxprune.allocate.capacity import heeding_parameters
from fxprune.budget import Budget
from fxprune.closed_form.removal import Removal
from fxprune.cost import Cost, cost
from fxprune.types import Coupling
from tests.networks import images


@cache
def problem() -> tuple[Cost, Coupling, dict[str, Removal]]:
    """Two groups of equal width and equal curves: one costs FLOPs at high resolution, the other parameters."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.Conv2d(16, 96, 1),
        nn.Flatten(),
        nn.Linear(96 * 4, 10),
    )
    gm = fp.capture(model, images())
    coupling = fp.analyze(gm)
    curves = {
        g.name: Removal(tuple(range(g.width)), tuple((k / g.width) ** 2 for k in range(g.width + 1)))
        for g in coupling.groups
    }
    return cost(gm, coupling), coupling, curves


def test_more_parameters_stay_for_more_error_at_the_same_budget() -> None:
    costs, coupling, curves = problem()
    budget, kept, errors = Budget(flops=0.5), [], []
    for capacity in (0.0, 2.0, 8.0):
        widths = allocate(costs, coupling, curves, budget, method="dynamic", capacity=capacity)
        spent = costs.evaluate(widths)
        assert spent["flops"] <= 0.5 * costs.evaluate()["flops"]
        kept.append(spent["params"])
        errors.append(foretold(curves, widths))
    assert kept[0] < kept[1] <= kept[2]
    assert errors[0] < errors[1] <= errors[2]


def test_a_budget_on_parameters_looks_at_the_error_alone() -> None:
    costs, coupling, curves = problem()
    budget = Budget(flops=0.6, params=0.7)
    plain, heeding = (allocate(costs, coupling, curves, budget, capacity=capacity) for capacity in (0.0, 4.0))
    assert plain == heeding


@pytest.mark.parametrize("method", ["greedy", "dynamic", "uniform"])
def test_as_small_as_an_error_allows_is_no_larger_with_capacity(method: str) -> None:
    costs, coupling, curves = problem()
    budget = Budget(max_error=0.2)
    plain, heeding = (
        allocate(costs, coupling, curves, budget, method=method, capacity=capacity) for capacity in (0.0, 2.0)
    )
    dear = heeding_parameters(curves, coupling, costs, plain, 2.0)
    assert foretold(dear, heeding) <= foretold(dear, plain) * (1 + 1e-9)
    assert costs.evaluate(heeding)["flops"] <= costs.evaluate(plain)["flops"] * 1.02


def test_what_is_added_rises_with_the_units_that_go_and_is_zero_for_none() -> None:
    costs, coupling, curves = problem()
    widths = allocate(costs, coupling, curves, Budget(flops=0.5))
    for name, dear in heeding_parameters(curves, coupling, costs, widths, 2.0).items():
        added = [after - before for after, before in zip(dear.errors, curves[name].errors, strict=True)]
        assert added[0] == 0
        assert all(before < after for before, after in pairwise(added[:-1]))  # the last two both keep a unit
        assert dear.order == curves[name].order
