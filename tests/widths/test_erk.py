"""ERK: the densities by hand, the least squares against its optimality conditions, caps, growth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.budget import Budget
from fxprune.errors import PlanError
from fxprune.widths.convex import densities_at
from fxprune.widths.erk import bounded_least_squares, erk
from tests.widths.settings import FAMILIES, check, family, setting_of


class Two(nn.Module):
    """Two convolutions and a classifier, without biases: 3 a + a b + 2 b parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))


# The sums over the products of the sizes of the two weights.
FIRST, SECOND = (4 + 3 + 1 + 1) / 12, (6 + 4 + 1 + 1) / 24
EXAMPLE = torch.randn(2, 3, 4, 4)


def test_two_layers_by_hand() -> None:
    """Densities e * FIRST and e * SECOND are a / 4 and a b / 24, so b is 4 and a is 3 e; at 29 parameters e is 1."""
    setting = setting_of(Two(), EXAMPLE, Budget(params=29))
    choice = erk(setting)
    assert not choice.order
    assert choice.widths == pytest.approx({"first.weight": 3, "second.weight": 4}, abs=0.51 / 7)
    assert choice.widths["second.weight"] == pytest.approx(6 * SECOND / FIRST, rel=1e-6)
    densities = densities_at(setting.layers, setting.dense, choice.widths)
    assert densities["first.weight"] / densities["second.weight"] == pytest.approx(FIRST / SECOND, rel=1e-6)


def test_a_layer_that_comes_to_its_own_density_is_capped_and_the_other_goes_on() -> None:
    """At e = 1.5 the first would have a density of 1.125: it stays whole, and the second has 0.75 = 4.5 / 6."""
    choice = erk(setting_of(Two(), EXAMPLE, Budget(params=12 + 18 + 9)))
    assert choice.widths == pytest.approx({"first.weight": 4, "second.weight": 4.5}, abs=0.51 / 6)
    assert choice.widths["first.weight"] == pytest.approx(4, rel=1e-9)


def test_densities_pass_one_where_groups_may_grow() -> None:
    """The same ratio at e = 2: a is 6, b 4."""
    setting = setting_of(Two(), EXAMPLE, Budget(params=50), most={"first.weight": 64, "second.weight": 96})
    assert erk(setting).widths == pytest.approx({"first.weight": 6, "second.weight": 4}, abs=0.51 / 7)


@pytest.mark.parametrize("name", [*FAMILIES, "Shuffle", "Tied"])
@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(flops=0.3, params=0.6)])
def test_every_family_is_within_bounds(name: str, budget: Budget) -> None:
    setting = family(name, budget)
    check(setting, erk(setting))


def test_the_smallest_network_can_be_reached() -> None:
    setting = family("Plain", Budget(params=0.5))
    least = replace(setting, limits=setting.spent(setting.least))
    assert erk(least).widths == pytest.approx(setting.least, abs=0.1)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(
        PlanError, match="'erk' gives densities to convolutions and linear layers: this network has none"
    ):
        erk(replace(family("Plain", Budget(params=0.5)), layers=()))


@pytest.mark.parametrize("seed", range(8))
def test_the_least_squares_meet_their_optimality_conditions(seed: int) -> None:
    """The gradient vanishes in the columns between the bounds, and points outwards in those at one."""
    drawn = np.random.default_rng(seed)
    matrix = (drawn.random((12, 9)) < 0.25) * drawn.choice([0.5, 1.0], (12, 9))
    values, lower, upper = drawn.normal(-1, 1, 12), np.full(9, -1.5), np.where(drawn.random(9) < 0.3, 0.5, 0.0)
    found = bounded_least_squares(matrix, values, lower, upper)
    gradient = matrix.T @ (matrix @ found - values)
    assert (lower <= found).all() and (found <= upper).all()
    assert np.abs(gradient[(lower < found) & (found < upper)]).max(initial=0) < 1e-9
    assert gradient[found == lower].min(initial=0) > -1e-9
    assert gradient[found == upper].max(initial=0) < 1e-9
    assert len({*np.sign(found - upper), *np.sign(lower - found)}) > 1  # both kinds of columns are there


def test_where_the_layers_leave_it_open_both_sides_shrink_alike() -> None:
    matrix = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = bounded_least_squares(matrix, np.array([math.log(0.25), -9.0]), np.full(3, -5.0), np.zeros(3))
    assert np.exp(found) == pytest.approx([0.5, 0.5, 0.5])  # the third is in no layer, and goes with the others
