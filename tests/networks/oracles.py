"""What must hold of every network and plan, whichever test asks."""

from __future__ import annotations

import torch
from torch import fx

import fxprune as fp
from fxprune.passes.base import COUPLING, DENSE, PLAN, clone, state
from tests.networks.helpers import calls, random_plan


def exact(gm: fx.GraphModule, plan: fp.Plan) -> fx.GraphModule:
    """The shrunk network, which computes what the original does without the removed units."""
    small = fp.shrink(gm, plan)
    small.graph.lint()
    proof = fp.verify(gm, small, plan)
    assert proof.ok, f"{plan}: {proof}"
    return small


def two_in_a_row_are_one(gm: fx.GraphModule, small: fx.GraphModule, first: fp.Plan, seed: int) -> None:
    """Shrinking the shrunk gives the tensors and the graph that the composed plan gives at once.

    Where little is left, the second analysis may hold what the first did not: the only channel of a half stays. Then
    the second plan must be exact all the same.
    """
    again = clone(small)
    for key in (DENSE, PLAN, COUPLING):
        state(again).pop(key, None)
    left = fp.analyze(again, heads=first.heads)
    second = fp.Plan(random_plan(left, seed).kept, heads=first.heads)
    widths = {group.name: group.width for group in left.groups}
    if widths != first.counts:
        exact(again, second)
        return
    twice = fp.shrink(again, second)
    both = {name: [units[unit] for unit in second.kept[name]] for name, units in first.kept.items()}
    once = fp.shrink(gm, fp.Plan(both, heads=first.heads))
    tensors = twice.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in once.state_dict().items())
    assert calls(once) == calls(twice)
