"""PreCrop's programs on networks: the figures of the paper's example, the optimum, the choice where it is flat."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fxprune as fp
from benchmarks.precrop_networks import ResNet20
from fxprune.closed_form.convex import Posynomial, solve_densities
from fxprune.closed_form.water_filling import water_filling
from fxprune.errors import BudgetError
from fxprune.widths import GROWTH, Setting, densities_at, layer_densities, objective, objective_bound, solved
from fxprune.widths.convex import layer_costs, precrop
from tests.widths.settings import FAMILIES, check, family, setting_of


@pytest.fixture(scope="module")
def resnet20() -> Setting:
    return setting_of(ResNet20(), torch.zeros(1, 3, 32, 32), fp.Budget(params=0.5))


def densities(setting: Setting, kind: str, share: float) -> tuple[np.ndarray, float]:
    """The layer densities for a share of one cost of the convolutions, and the share of the other cost that is left."""
    costs = {name: layer_costs(setting, name) for name in ("params", "flops")}
    found = solve_densities({kind: costs[kind]}, {kind: share * costs[kind].sum()})
    assert found == pytest.approx(water_filling(costs[kind], share * costs[kind].sum()), rel=1e-4)
    other = costs["flops" if kind == "params" else "params"]
    return found, float(other @ found / other.sum())


def test_resnet20_costs_what_the_paper_counts(resnet20: Setting) -> None:
    assert layer_costs(resnet20, "params").sum() == 267_696
    assert layer_costs(resnet20, "flops").sum() / 2 == pytest.approx(40.55e6, rel=1e-3)


def test_resnet20_at_half_the_parameters(resnet20: Setting) -> None:
    found, flops = densities(resnet20, "params", 0.5)
    assert found[:13] == pytest.approx(np.ones(13))  # the stem, stages 1 and 2
    assert found[13:].round(2).tolist() == [0.62, 0.31, 0.31, 0.31, 0.31, 0.31]
    assert flops == pytest.approx(0.789, abs=5e-4)


def test_resnet20_at_a_quarter_of_the_parameters(resnet20: Setting) -> None:
    found, flops = densities(resnet20, "params", 0.25)
    assert found[:7] == pytest.approx(np.ones(7))
    assert found[7:].round(2).tolist() == [0.95, *[0.48] * 5, 0.24, *[0.12] * 5]
    assert flops == pytest.approx(0.568, abs=5e-4)


def test_resnet20_at_half_the_flops(resnet20: Setting) -> None:
    found, params = densities(resnet20, "flops", 0.5)
    entries = [7, 13]
    assert found[0] == pytest.approx(1)
    assert found[entries].round(2).tolist() == [0.93, 0.93]
    assert np.delete(found, [0, *entries]).round(2).tolist() == [0.47] * 16
    assert params == pytest.approx(0.508, abs=5e-4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("budget", [fp.Budget(params=0.5), fp.Budget(flops=0.6, params=0.7), fp.Budget(memory=0.7)])
def test_the_widths_keep_all_limits_and_use_one_up(name: str, budget: fp.Budget) -> None:
    setting = family(name, budget)
    loose = replace(setting, limits={kind: limit * (1 + 1e-8) for kind, limit in setting.limits.items()})
    check(loose, precrop(setting))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_widths_nearby_that_fit_do_better(name: str) -> None:
    setting = replace(family(name, fp.Budget(params=0.6, flops=0.6)), slack=0.0)
    best = precrop(setting).widths
    value = objective_bound(setting, best)
    generator = np.random.default_rng(0)
    for _ in range(300):
        other = {
            group: float(np.clip(width * math.exp(generator.normal(0, 0.1)), setting.least[group], setting.most[group]))
            for group, width in best.items()
        }
        if setting.fits(other):
            assert objective_bound(setting, other) <= value + 1e-4


def test_of_nearly_optimal_widths_the_nearest_to_the_originals_are_taken(resnet20: Setting) -> None:
    def shares(slack: float) -> np.ndarray:
        widths = precrop(replace(resnet20, slack=slack)).widths
        return np.array([widths[name] / resnet20.dense[name] for name in resnet20.dense])

    best = objective_bound(resnet20, precrop(replace(resnet20, slack=0.0)).widths)
    calls = sum(len(layer.calls) for layer in resnet20.layers)
    for slack in (0.01, 0.03):
        value = objective_bound(resnet20, precrop(replace(resnet20, slack=slack)).widths)
        assert value == pytest.approx(best - slack * calls, rel=1e-4)
    assert shares(0.0).min() < shares(0.01).min() < shares(0.03).min()


def test_a_limit_that_does_not_bind_changes_nothing(resnet20: Setting) -> None:
    roomy = replace(resnet20, limits={"params": 1e9})
    assert precrop(roomy).widths == pytest.approx(dict(resnet20.dense))


def test_widths_may_grow(resnet20: Setting) -> None:
    limits = {**resnet20.limits, "flops": resnet20.cost.evaluate()["flops"]}
    most = {name: width * GROWTH for name, width in resnet20.dense.items()}
    setting = replace(resnet20, limits=limits, most=most)
    widths = precrop(setting).widths
    assert any(width > resnet20.dense[name] for name, width in widths.items())
    cropped = precrop(replace(setting, most=resnet20.dense)).widths
    assert objective_bound(setting, widths) > objective_bound(setting, cropped)


def test_where_groups_share_an_axis_the_bound_is_below_the_density() -> None:
    setting = family("Dense", fp.Budget(params=0.5))
    widths = precrop(setting).widths
    exact = objective(setting.layers, densities_at(setting.layers, setting.dense, widths))
    assert objective_bound(setting, widths) < exact < 0


def test_layer_densities_leave_room_for_what_belongs_to_no_layer(resnet20: Setting) -> None:
    found = layer_densities(resnet20)
    spent = sum(found[layer.name] * layer.weights for layer in resnet20.layers)
    rest = resnet20.cost.evaluate()["params"] - 267_696
    assert spent + rest == pytest.approx(resnet20.limits["params"], rel=1e-6)
    with pytest.raises(BudgetError, match="params="):
        layer_densities(replace(resnet20, limits={"params": rest / 2}))


def test_a_limit_that_the_smallest_network_breaks_is_named(resnet20: Setting) -> None:
    least = {name: width / 2 for name, width in resnet20.dense.items()}
    setting = replace(resnet20, least=least, limits={"params": 10_000, "flops": 30e6})
    with pytest.raises(BudgetError, match=r"params=10,000 cannot be reached: the smallest network has 6\d,\d{3}; "):
        solved(setting)


def test_posynomials_are_the_costs(resnet20: Setting) -> None:
    logs = np.log(list(resnet20.dense.values()))
    for kind, count in resnet20.cost.evaluate(kinds=("flops", "params", "memory")).items():
        posynomial = Posynomial(*resnet20.cost.terms(kind))
        assert posynomial.at(logs) == pytest.approx(count)
        step = 1e-6 * np.eye(len(logs))
        slopes = [(posynomial.at(logs + move) - posynomial.at(logs - move)) / 2e-6 for move in step]
        assert posynomial.gradient(logs) == pytest.approx(slopes, rel=1e-4)
