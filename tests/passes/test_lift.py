"""Lift: golden code, the same outputs and gradients, names, tying, training, export, and refusals."""

from __future__ import annotations

import copy
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.capture import META, capture
from fxprune.coupling import analyze
from fxprune.errors import RewriteError
from fxprune.passes.lift import Lift
from fxprune.passes.shrink import shrink
from fxprune.passes.tidy import Tidy
from tests.networks import NETWORKS, build, images, random_plan


def lifted(model: nn.Module, *inputs: Any, **kwargs: Any) -> fx.GraphModule:
    """A lifted graph of its own: the capture is copied first."""
    gm = copy.deepcopy(capture(model, inputs, kwargs))
    Lift()(gm)
    return gm


def changes(step: PassBase, gm: fx.GraphModule) -> bool:
    """Runs a pass; whether it says that it changed the graph."""
    result = step(gm)
    assert result is not None
    return result.modified


def code(gm: fx.GraphModule) -> str:
    return gm.code.strip()


def test_a_residual_network_reads_like_hand_written() -> None:
    expected = """\
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem[0](x)
            x = self.stem[1](x)
            x = F.relu(x)

            y = self.conv1[0](x)
            y = self.conv1[1](y)
            y = F.relu(y)

            y = self.conv2[0](y)
            y = self.conv2[1](y)

            x = x + y
            x = F.relu(x)
            x = x.mean((2, 3))
            x = self.head(x)
            return x"""
    assert code(lifted(build("Residual"), images())) == dedent(expected)


def test_slices_chunks_and_sizes_are_written_as_people_do() -> None:
    text = code(lifted(build("Padded"), images()))
    assert " = x[:, :, ::2, ::2]\n" in text
    assert "F.pad(y, (0, 0, 0, 0, 2, 2))" in text
    text = code(lifted(build("Shuffle"), images()))
    assert "x1, x2 = x.chunk(2, 1)" in text
    assert "batch = x.size(0)" in text
    assert "x = x.view(batch, 2, 4, 8, 8)" in text
    assert "x = torch.cat([x1, x2], 1)" in text


class Wide(nn.Module):
    """Three branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1x1, self.branch3x3_1 = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.branch3x3_2, self.pool = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.branch1x1(x), self.branch3x3_2(self.branch3x3_1(x)), self.pool(x)]
        return torch.cat(branches, 1)


def test_branches_of_a_wide_merge_are_named_after_their_modules_and_freed() -> None:
    expected = """\
        def forward(self, x: Tensor) -> Tensor:
            branch1x1 = self.branch1x1(x)
            branch3x3 = self.branch3x3_1(x)
            branch3x3 = self.branch3x3_2(branch3x3)
            x = self.pool(x)
            x = torch.cat([branch1x1, branch3x3, x], 1)
            del branch1x1, branch3x3
            return x"""
    assert code(lifted(Wide(), images())) == dedent(expected)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "shrunk"])
def test_outputs_names_and_tensors_are_those_of_the_graph(name: str, cut: bool) -> None:
    model = build(name).double()
    x = images(3).double()
    gm = copy.deepcopy(capture(model, x))
    gm = shrink(gm, random_plan(analyze(gm), seed=0)) if cut else gm
    wanted, tensors = gm(x), {id(tensor) for tensor in gm.state_dict(keep_vars=True).values()}
    Tidy()(gm)
    assert changes(Lift(), gm)
    assert torch.equal(gm(x), wanted)
    assert {id(tensor) for tensor in gm.state_dict(keep_vars=True).values()} == tensors
    assert list(gm.state_dict()) == list(model.state_dict())
    assert [key for key, _ in gm.named_parameters()] == [key for key, _ in model.named_parameters()]
    assert "torch.ops" not in gm.code
    assert gm(images(5).double()).shape == (5, 3), "the batch is dynamic"


@pytest.mark.parametrize("name", ["Residual", "Shuffle", "Tied"])
def test_it_trains_like_the_original(name: str) -> None:
    model, x = build(name).double(), images(4).double()
    gm = lifted(model, x)
    model, gm = copy.deepcopy(model).train(), gm.train()
    (model(x) ** 2).mean().backward()
    (gm(x) ** 2).mean().backward()
    gradients = {key: parameter.grad for key, parameter in gm.named_parameters()}
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(gm.state_dict()[key], tensor)
    assert any(key.endswith("num_batches_tracked") and tensor == 1 for key, tensor in gm.state_dict().items())


def test_a_second_run_changes_nothing() -> None:
    gm = lifted(build("Residual"), images())
    before = gm.code
    assert not changes(Lift(), gm)
    assert gm.code == before


def test_requires_grad_modes_and_metadata_are_kept() -> None:
    model = build("Residual")
    model.get_submodule("stem").requires_grad_(False)
    gm = lifted(model, images())
    assert {key for key, item in gm.named_parameters() if not item.requires_grad} == {
        "stem.0.weight",
        "stem.1.weight",
        "stem.1.bias",
    }
    assert not gm.training
    assert all(module.training for module in gm.train().modules())
    for node in gm.graph.nodes:
        if node.op in {"call_module", "call_function"}:
            assert isinstance(node.meta["val"], Tensor)
            assert node.meta["nn_module_stack"]
            assert node.meta["stack_trace"]


@pytest.mark.parametrize("strict", [True, False])
def test_it_exports_and_copies(strict: bool) -> None:
    x = images(2)
    gm = copy.deepcopy(lifted(build("Shuffle"), x))
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(gm, (x,), dynamic_shapes=batch, strict=strict)
    torch.testing.assert_close(program.module()(images(6)), gm(images(6)))
    assert type(gm).__name__ == "Shuffle"


class Dropping(nn.Module):
    """Dropout as a module and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(self.drop(x)), 0.25, self.training)


def test_dropout_modules_live_again_and_functional_ones_are_noted() -> None:
    gm = lifted(Dropping(), torch.randn(4, 3))
    assert code(gm).count("drop") == 1
    (note,) = gm.meta[META]["training_notes"]
    assert "p=0.25" in note
    assert "test_lift.py" in note
    x = torch.randn(64, 3)
    assert torch.equal(gm(x), gm(x))
    gm.train()
    assert not torch.equal(gm(x), gm(x))


def test_a_graph_from_elsewhere_is_refused() -> None:
    with pytest.raises(RewriteError, match="fxprune.capture"):
        Lift()(fx.symbolic_trace(nn.Linear(2, 2)))


def test_the_postcondition_sees_what_is_left() -> None:
    gm = copy.deepcopy(capture(build("Residual"), images()))
    with pytest.raises(RewriteError, match="conv2d.*was not lifted"):
        Lift().ensures(gm)
