"""What passes share: a coupling is found once for a graph, and anew for another."""

from __future__ import annotations

import copy

import torch

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
