"""Uniform width: the share by hand, bounds and growth; and units at random."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from fxprune.budget import Budget
from fxprune.widths.uniform import random, uniform
from tests.widths.settings import FAMILIES, check, family, setting_of


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers without biases."""
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(flops=0.3, params=0.6), Budget(memory=0.7)])
def test_all_groups_keep_one_share(name: str, budget: Budget) -> None:
    setting = family(name, budget)
    choice = uniform(setting)
    check(setting, choice)
    assert not choice.order
    shares = {width / setting.dense[name] for name, width in choice.widths.items() if width > setting.least[name]}
    assert max(shares) == pytest.approx(min(shares))


def test_the_share_by_hand() -> None:
    """200 s + 600 s^2 + 150 s = 300: costs are counted to the nearest whole one."""
    setting = setting_of(layers(10, 20, 30, 5), torch.randn(2, 10), Budget(params=300))
    share = (-350 + math.sqrt(350**2 + 4 * 600 * 300)) / 1200
    assert uniform(setting).widths == pytest.approx({"0.weight": 20 * share, "1.weight": 30 * share}, abs=0.51 / 30)


def test_a_group_at_a_bound_stays_there_and_the_others_go_on() -> None:
    """With the first width fixed: 200 + 20 w + 5 w = 500."""
    setting = setting_of(
        layers(10, 20, 30, 5), torch.randn(2, 10), Budget(params=500), least={"0.weight": 20, "1.weight": 3}
    )
    assert uniform(setting).widths == pytest.approx({"0.weight": 20, "1.weight": 12}, abs=0.51 / 25)


def test_groups_grow_where_they_may() -> None:
    """200 s + 600 s^2 + 150 s = 3100 at s = 2, and the second layer may reach 50 only: 10 v + 50 v + 250 = 3100."""
    network, example, budget = layers(10, 20, 30, 5), torch.randn(2, 10), Budget(params=3100)
    free = uniform(setting_of(network, example, budget, most={"0.weight": 320, "1.weight": 480}))
    assert free.widths == pytest.approx({"0.weight": 40, "1.weight": 60}, abs=0.02)
    bound = uniform(setting_of(network, example, budget, most={"0.weight": 320, "1.weight": 50}))
    assert bound.widths == pytest.approx({"0.weight": 47.5, "1.weight": 50}, abs=0.02)


def test_a_budget_that_holds_already_changes_nothing() -> None:
    setting = family("Plain", Budget(params=1.0))
    assert uniform(setting).widths == random(setting).widths == setting.dense


@pytest.mark.parametrize("name", FAMILIES)
def test_random_is_within_bounds(name: str) -> None:
    setting = family(name, Budget(flops=0.5))
    check(setting, random(setting))


def test_random_depends_on_the_seed_alone() -> None:
    first, again, other = (random(family("Plain", Budget(params=0.5), seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.order != other.order


def test_random_takes_groups_in_blocks_no_later_than_others() -> None:
    """On average a step is as likely to leave, whether it takes one unit or one from each of four blocks."""
    setting = family("FusedAttention", Budget(params=0.5))
    assert {len(group.blocks) for group in setting.coupling.groups} == {0, 4}
    lost = dict.fromkeys(setting.dense, 0.0)
    for seed in range(300):
        for name, width in random(replace(setting, seed=seed)).widths.items():
            lost[name] += (1 - width / setting.dense[name]) / 300
    low, high = sorted(lost.values())
    assert high - low < 0.1, lost
