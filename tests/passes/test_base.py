"""What passes share: a coupling is found once for a graph, and anew for another."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fxprune.calibrate.descent import trainable
from fxprune.capture import capture
from fxprune.passes.base import analysed, clone, not_finite, replace_tensor
from tests.networks import build, images


def test_a_coupling_is_found_once_while_the_graph_is_the_same() -> None:
    gm = clone(capture(build("Plain"), (images(),)))
    first = analysed(gm, False)
    assert analysed(gm, False) is first
    assert analysed(clone(gm), False) is first
    assert analysed(gm, True) is not first


def test_another_graph_tensor_or_value_is_analysed_anew() -> None:
    gm = clone(capture(build("Plain"), (images(),)))
    found = [analysed(gm, False)]
    replace_tensor(gm, "fc1.bias", torch.zeros_like(gm.get_parameter("fc1.bias")))
    found.append(analysed(gm, False))
    with torch.no_grad():
        gm.get_parameter("fc1.bias").add_(1)
    found.append(analysed(gm, False))
    node = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.relu.default)
    node.target = torch.ops.aten.sigmoid.default
    found.append(analysed(gm, False))
    found.append(analysed(copy.deepcopy(gm), False))
    assert len(set(map(id, found))) == len(found)
    assert len({str(coupling) for coupling in found}) == 1


def test_what_corrections_write_must_be_finite_and_a_mask_need_not() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    gm.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    assert not list(not_finite(gm))
    name = next(name for name, _ in gm.named_buffers() if name.endswith("running_var"))
    replace_tensor(gm, name, torch.full_like(gm.get_buffer(name), torch.inf))
    assert list(not_finite(gm)) == [name]
    replace_tensor(gm, "head.bias", torch.full_like(gm.get_parameter("head.bias"), torch.nan))
    assert set(not_finite(gm)) == {name, "head.bias"}


class Named(nn.Module):
    """A layer that is known by a second name, and a second layer with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.body = nn.Sequential(self.first, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.second(self.body(x)))
        return y


def test_a_tensor_is_replaced_under_all_its_names() -> None:
    model = Named()
    gm = clone(capture(model, (torch.randn(2, 3),)))
    replace_tensor(gm, "body.0.weight", torch.ones(3, 3))
    names = ("first.weight", "second.weight", "body.0.weight")
    assert len({id(gm.get_parameter(name)) for name in names}) == 1
    assert bool((gm.get_parameter("first.weight") == 1).all())
    assert len(list(gm.parameters())) == len(list(model.parameters()))
    assert not bool((model.first.weight == 1).any())


def test_what_has_several_names_learns_too() -> None:
    gm = clone(capture(Named(), (torch.randn(2, 3),)))
    assert {gm.get_parameter(name) for name in trainable(gm)} == set(gm.parameters())
