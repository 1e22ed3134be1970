"""Removal: costs against refitting by force, order, blocks, and inputs that are dead, repeated or nobody's; units taken
one by one, in a given order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from fxprune.closed_form.removal import (
    STRIDES,
    Removal,
    System,
    greedy_removal,
    removal_in_order,
    uncompensated_costs,
)
from fxprune.closed_form.ridge import compensated, damping


def system(inputs: int, outputs: int, units: list[int], seed: int = 0) -> System:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, inputs, generator=generator, dtype=torch.float64) @ torch.randn(
        inputs, inputs, generator=generator, dtype=torch.float64
    )
    weights = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    return System(x.mT @ x / 200, weights, torch.tensor(units))


def refitted(item: System, gone: set[int], rho: float) -> float:
    """The least ridged error of a map that may not read the units that are gone."""
    h = item.covariance + damping(item.covariance[None], rho)[0] * torch.eye(len(item.covariance))
    stays = torch.tensor([int(unit) not in gone for unit in item.units])
    w = item.weights
    best = torch.zeros_like(w)
    if bool(stays.any()):
        best[stays] = torch.linalg.solve(h[stays][:, stays], h[stays] @ w)
    return float(((w - best) * (h @ (w - best))).sum())


@pytest.mark.parametrize("rho", [1e-2, 1e-6])
def test_errors_are_those_of_refitting(rho: float) -> None:
    maps = [system(6, 3, [0, 0, 1, 1, 2, -1]), system(4, 2, [2, 1, 0, 3], seed=1)]
    removal = greedy_removal(maps, 4, rho=rho)
    for rounds in range(5):
        gone = set(removal.order[:rounds])
        assert removal.errors[rounds] == pytest.approx(sum(refitted(item, gone, rho) for item in maps), abs=1e-8)


def test_each_step_is_the_cheapest() -> None:
    maps = [system(8, 3, [0, 0, 1, 1, 2, 2, 3, 3])]
    removal = greedy_removal(maps, 4)
    for rounds in range(4):
        before = set(removal.order[:rounds])
        costs = {unit: refitted(maps[0], before | {unit}, 1e-2) for unit in range(4) if unit not in before}
        assert removal.order[rounds] == min(costs, key=costs.__getitem__)


def test_many_units_are_removed_as_exactly_as_few() -> None:
    item = system(40, 5, list(range(40)))
    removal = greedy_removal([item], 40)
    for rounds in (5, 20, 35, 40):
        assert removal.errors[rounds] == pytest.approx(refitted(item, set(removal.order[:rounds]), 1e-2), rel=1e-6)


def test_blocks_lose_one_unit_each_a_round() -> None:
    blocks = ((0, 2, 4), (1, 3, 5))
    removal = greedy_removal([system(6, 2, [0, 1, 2, 3, 4, 5])], 6, blocks)
    assert removal.step == 2 and len(removal.errors) == 4
    for start in (0, 2, 4):
        assert [unit % 2 for unit in removal.order[start : start + 2]] == [0, 1]
    assert sorted(removal.order) == list(range(6))


def test_dead_units_leave_first_and_repeated_ones_early() -> None:
    x = torch.randn(300, 4, dtype=torch.float64)
    x = torch.cat([x, x[:, :1], torch.zeros(300, 1)], 1)
    weights = torch.ones(6, 2, dtype=torch.float64)
    removal = greedy_removal([System(x.mT @ x / 300, weights, torch.arange(6))], 6, rho=1e-6)
    assert removal.order[0] == 5
    assert removal.order[1] in (0, 4)
    assert removal.errors[2] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("covariance", [torch.zeros(3, 3), torch.ones(3, 3), torch.eye(3) * 1e-30])
def test_singular_moments_give_numbers(covariance: Tensor) -> None:
    removal = greedy_removal([System(covariance, torch.ones(3, 2), torch.arange(3))], 3)
    assert sorted(removal.order) == [0, 1, 2]
    assert all(error == error and error >= 0 for error in removal.errors)


def test_the_numbering_of_units_does_not_matter() -> None:
    item = system(4, 2, [0, 1, 2, 3])
    errors = greedy_removal([item], 4).errors
    for order in permutations(range(4)):
        renamed = greedy_removal([System(item.covariance, item.weights, torch.tensor(order))], 4)
        assert renamed.errors == pytest.approx(errors)


def test_costs_without_compensation_are_those_of_holding_a_unit_at_its_mean() -> None:
    maps = [system(6, 3, [0, 0, 1, 1, 2, -1]), system(4, 2, [2, 1, 0, 3], seed=1)]
    costs = uncompensated_costs(maps, 4)
    for unit in range(4):
        lost = 0.0
        for item in maps:
            held = torch.where((item.units == unit)[:, None], item.weights, 0)
            lost += float((held.mT @ item.covariance @ held).trace())
        assert float(costs[unit]) == pytest.approx(lost)


def test_nothing_makes_up_for_a_unit_at_less_cost_than_refitting() -> None:
    item = system(8, 3, [0, 0, 1, 1, 2, 2, 3, 3])
    costs = uncompensated_costs([item], 4).tolist()
    assert all(cost >= refitted(item, {unit}, 1e-12) - 1e-9 for unit, cost in enumerate(costs))


def test_a_given_order_is_kept_in_each_block() -> None:
    scores, costs = torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert removal_in_order(scores, costs) == Removal((1, 2, 0, 5, 4, 3), (0, 2, 6, 7, 39, 55, 63))
    blocks = ((0, 1, 2), (3, 4, 5))
    assert removal_in_order(scores, costs, blocks) == Removal((1, 5, 2, 4, 0, 3), (0, 34, 54, 63), 2)


def test_wide_groups_lose_several_units_at_a_time_at_the_exact_error() -> None:
    generator = torch.Generator().manual_seed(0)
    width = 2 * STRIDES + 3
    rows = torch.randn(400, 2 * width, generator=generator, dtype=torch.float64)
    weights = torch.randn(2 * width, 3, generator=generator, dtype=torch.float64)
    covariance = rows.T @ rows / len(rows)
    removal = greedy_removal([System(covariance, weights, torch.arange(width).repeat(2))], width, rho=1e-9)
    assert sorted(removal.order) == list(range(width)) and len(removal.errors) == width + 1
    assert list(removal.errors) == sorted(removal.errors)
    for gone in (2, 60, width - 1, width):  # after whole strides, and at the end
        kept = ~torch.isin(torch.arange(width).repeat(2), torch.tensor(removal.order[:gone]))
        error = weights - compensated(covariance, weights, kept, 1e-9)
        assert removal.errors[gone] == pytest.approx(float((error * (covariance @ error)).sum()), rel=1e-4)
