"""What a method is given, made from a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.budget import Budget
from fxprune.capture import capture
from fxprune.cost import cost
from fxprune.coupling import analyze
from fxprune.widths.layers import layers_of
from fxprune.widths.setting import Choice, Setting
from tests.networks import build, inputs

# A network for each mechanism: plain, residual, depthwise, concatenation, blocks of grouped convolutions and attention.
FAMILIES = ("Plain", "Residual", "Depthwise", "Dense", "Grouped", "Attention", "FusedAttention")


def setting_of(
    model: nn.Module,
    example: Any,
    budget: Budget,
    *,
    least: Mapping[str, float] | None = None,
    most: Mapping[str, float] | None = None,
    data: tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Setting:
    """The setting of a model in any mode; bounds that are not given are one step and the width of the original."""
    gm = capture(model, example)
    coupling = analyze(gm)
    costs = cost(gm, coupling)
    return Setting(
        gm=gm,
        coupling=coupling,
        cost=costs,
        layers=layers_of(gm, coupling),
        limits=budget.absolute(costs.evaluate(kinds=budget.kinds)),
        least={**{group.name: group.step for group in coupling.groups}, **(least or {})},
        most={**costs.widths, **(most or {})},
        model=model,
        data=data,
        seed=seed,
    )


def family(name: str, budget: Budget, **options: Any) -> Setting:
    """The setting of one of the networks of the tests, with random labels of its three classes as data."""
    example = inputs(name, batch=6)
    return setting_of(build(name), example, budget, data=(example, torch.arange(6) % 3), **options)


def check(setting: Setting, choice: Choice) -> None:
    """The widths are within the bounds and limits and use one of these up; the order has every unit, in even steps."""
    assert choice.widths.keys() == setting.dense.keys()
    for name, width in choice.widths.items():
        assert setting.least[name] <= width <= setting.most[name], name
    assert setting.fits(choice.widths)
    spent = setting.spent(choice.widths)
    whole = all(width == setting.most[name] for name, width in choice.widths.items())
    assert whole or any(spent[kind] >= limit - 1 for kind, limit in setting.limits.items()), (spent, setting.limits)
    for group in setting.coupling.groups if choice.order else ():
        order = choice.order[group.name]
        assert sorted(order) == list(range(group.width))
        for start in range(0, group.width if group.blocks else 0, group.step):
            together = set(order[start : start + group.step])
            assert all(len(together & set(block)) == 1 for block in group.blocks)
