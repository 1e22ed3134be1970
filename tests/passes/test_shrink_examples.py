"""Shrink on every mechanism: exact whatever is removed, at the cost that was predicted, once or twice in a row."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from tests.networks import EXAMPLES, NETWORKS, captured, inputs, random_plan
from tests.networks.oracles import exact, two_in_a_row_are_one

EVERY = [*NETWORKS, *EXAMPLES]
ATTENTION = [name for name, item in EXAMPLES.items() if item.heads is not None]


@pytest.mark.parametrize("name", EVERY)
def test_unbalanced_and_balanced_subsets_are_exact_and_cost_what_was_predicted(name: str) -> None:
    gm = captured(name)
    coupling = fp.analyze(gm)
    cost = fp.cost(gm, coupling)
    plan = random_plan(coupling, 0, least=2)  # an einsum over one channel is a product, which counts as no FLOPs
    costs_agree(exact(gm, plan), cost, plan, inputs(name, 1))
    exact(gm, random_plan(coupling, 1, balanced=True))


@pytest.mark.parametrize("name", ATTENTION)
def test_whole_heads_are_exact(name: str) -> None:
    gm = captured(name)
    exact(gm, fp.Plan(random_plan(fp.analyze(gm, heads=True), 2).kept, heads=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_three_seeds_and_each_group_by_itself_are_exact(name: str) -> None:
    coupling = fp.analyze(captured(name))
    for seed in range(3):
        exact(captured(name, seed), random_plan(coupling, seed))
    for group in coupling.groups:
        exact(captured(name), random_plan(coupling, 1, only=group.name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_three_seeds_of_heads_are_exact(name: str) -> None:
    coupling = fp.analyze(captured(name), heads=True)
    for seed in range(3):
        exact(captured(name, seed), fp.Plan(random_plan(coupling, seed).kept, heads=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_two_prunes_in_a_row_equal_one(name: str) -> None:
    gm = captured(name)
    plan = random_plan(fp.analyze(gm), 2, least=2)
    two_in_a_row_are_one(gm, fp.shrink(gm, plan), plan, 3)


def costs_agree(small: torch.fx.GraphModule, cost: fp.Cost, plan: fp.Plan, example: tuple[torch.Tensor, ...]) -> None:
    """The symbolic cost is what FlopCounterMode and numel say of the shrunk network."""
    widths = plan.counts
    predicted = cost.evaluate(widths)
    values = {cost.symbols[group]: width for group, width in widths.items()}
    uncounted = sum(cost.by_node[node].subs(values) for node in cost.uncounted)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(*example)
    assert predicted["flops"] == counter.get_total_flops() + uncounted
    assert predicted["params"] == sum(parameter.numel() for parameter in small.parameters())
