"""Alignment: multiples of 16 or 8 where they are free, any widths where they are not; the budget is used up always."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune.allocate import METHODS, Problem, allocate, allocator, foretold, ladders_of
from fxprune.allocate.align import FREE
from fxprune.closed_form.removal import Removal
from fxprune.errors import PlanError


@cache
def network(*widths: int) -> tuple[fp.Cost, fp.Coupling, dict[str, Removal]]:
    """A chain of convolutions whose curves rise smoothly, each steeper than the one before."""
    sizes = (3, *widths, 10)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
    gm = fp.capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8))
    coupling = fp.analyze(gm)
    removals = {}
    for steepness, group in enumerate(coupling.groups, 4):
        errors = tuple(steepness * (gone / group.width) ** 2 for gone in range(group.width))
        removals[group.name] = Removal(tuple(range(group.width)), errors)
    return fp.cost(gm, coupling), coupling, removals


def allocated(widths: tuple[int, ...], budget: fp.Budget, **options: Any) -> dict[str, int]:
    return allocate(*network(*widths), budget, method="dynamic", **options)


WIDE = (256, 512, 384, 512)


@pytest.mark.parametrize("budget", [fp.Budget(flops=0.5), fp.Budget(params=0.4, flops=0.6), fp.Budget(max_error=0.8)])
def test_wide_groups_become_multiples_but_for_a_few_units_that_use_the_budget_up(budget: fp.Budget) -> None:
    cost, coupling, removals = network(*WIDE)
    aligned, best = allocated(WIDE, budget, multiple_of=None), allocated(WIDE, budget)
    assert sum(width % 16 != 0 for width in aligned.values()) <= 2 < sum(width % 16 != 0 for width in best.values())
    if budget.max_error is not None:
        assert foretold(removals, aligned) <= budget.max_error
        assert cost.evaluate(aligned)["flops"] <= FREE * cost.evaluate(best)["flops"]
        return
    assert foretold(removals, aligned) <= FREE * foretold(removals, best)
    limits, spent = budget.absolute(cost.evaluate()), cost.evaluate(aligned)
    assert all(spent[kind] <= limit for kind, limit in limits.items())
    for group in coupling.groups:
        more = cost.evaluate({**aligned, group.name: aligned[group.name] + 1})
        assert aligned[group.name] == group.width or any(more[kind] > limit for kind, limit in limits.items())


def test_narrow_groups_have_any_widths() -> None:
    narrow = (12, 20, 28)
    assert allocated(narrow, fp.Budget(flops=0.5), multiple_of=None) == allocated(narrow, fp.Budget(flops=0.5))


def test_a_network_that_keeps_everything_is_left_alone() -> None:
    cost, _, _ = network(*WIDE)
    assert allocated(WIDE, fp.Budget(flops=1.0), multiple_of=None) == cost.widths


def test_what_is_given_is_kept_to_exactly() -> None:
    assert all(width % 16 == 0 for width in allocated(WIDE, fp.Budget(flops=0.5), multiple_of=16).values())


def test_a_unit_may_be_several_channels() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 48, dropout=0.0, batch_first=True).eval()
    coupling = fp.analyze(fp.capture(layer, torch.randn(2, 5, 64)), heads=True)
    widths = ladders_of(coupling, None, (), 0.75, liked=16)
    assert sorted(widths.values()) == [[4, 3, 2, 1], [48, 32, 16]]  # a head is 16 channels


def test_where_only_single_units_keep_the_limits_any_widths_are_taken() -> None:
    narrow = (24, 40, 40)
    _, _, removals = network(*narrow)
    best = foretold(removals, allocated(narrow, fp.Budget(flops=0.8)))
    budget = fp.Budget(flops=0.8, max_error=1.001 * best)
    assert foretold(removals, allocated(narrow, budget, multiple_of=None)) <= 1.001 * best


def test_an_allocator_that_knows_no_ladders_is_left_to_any_widths() -> None:
    @allocator("half of each group")
    def _(problem: Problem) -> dict[str, int]:
        return {name: ladder[0] // 2 - 1 for name, ladder in problem.ladders.items()}

    try:
        widths = allocate(*network(*WIDE), fp.Budget(flops=0.5), method="half of each group", multiple_of=None)
    finally:
        del METHODS["half of each group"]
    assert all(width >= whole // 2 - 1 for width, whole in zip(widths.values(), WIDE, strict=True))


def test_other_things_are_refused() -> None:
    with pytest.raises(PlanError, match="multiple_of=0 must be a whole number, at least 1"):
        allocated(WIDE, fp.Budget(flops=0.5), multiple_of=0)
