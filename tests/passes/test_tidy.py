"""Tidy: what goes, what must stay, and honest words about both."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.capture import capture
from fxprune.errors import RewriteError
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy
from tests.networks import build, calls, images


class Untidy(nn.Module):
    """Each line but the first and the last computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.cat([y], 1).clone()
        y = F.dropout(y, 0.0)
        y = y * torch.tensor([1.0, 2.0, 3.0, 4.0]).detach()[:, None, None]
        _ = y.sum() + 1
        return y.relu()


def captured(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    return copy.deepcopy(capture(model, inputs))


def changes(gm: fx.GraphModule) -> bool:
    """Runs Tidy; whether it says that it changed the graph."""
    result = Tidy()(gm)
    assert result is not None
    return result.modified


def test_what_computes_nothing_goes() -> None:
    model, x = Untidy(), images()
    gm = captured(model, x)
    assert "clone" in calls(gm)
    assert changes(gm)
    assert calls(gm).splitlines() == [
        "conv2d[4, 8, 8] = conv2d.default(x)",
        "unsqueeze[1] = unsqueeze.default(1)",
        "unsqueeze_1[1, 1] = unsqueeze.default(unsqueeze, 2)",
        "mul[4, 8, 8] = mul.Tensor(conv2d, unsqueeze_1)",
        "relu[4, 8, 8] = relu.default(mul)",
    ]
    torch.testing.assert_close(gm(x), model(x))
    assert not changes(gm)


def test_reads_of_the_same_parameter_are_merged() -> None:
    gm = captured(build("Plain"), images())
    node = next(node for node in gm.graph.nodes if node.op == "get_attr" and node.target == "conv2.weight")
    with gm.graph.inserting_after(node):
        again = gm.graph.get_attr("conv2.weight")
    (user,) = node.users
    user.replace_input_with(node, again)
    with pytest.raises(RewriteError, match="read by more than one node"):
        Tidy().ensures(gm)
    wanted = gm(images())
    assert changes(gm)
    assert [item.target for item in gm.graph.nodes if item.op == "get_attr"].count("conv2.weight") == 1
    assert torch.equal(gm(images()), wanted)


class Copies(nn.Module):
    """Copies that can be seen from outside: of an input, of an expanded view, before an in-place write."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        wide = x[..., :1].expand(-1, 3).clone().view(-1)
        return x.clone(), torch.cat([x], 1), wide, (x * self.weight).detach() * 2, x.t().contiguous().view(-1)


def test_copies_layout_and_gradients_that_can_be_seen_stay() -> None:
    model, x = Copies(), torch.randn(4, 3)
    gm = captured(model, x)
    before = [str(node.target) for node in gm.graph.nodes]
    Tidy()(gm)
    assert [str(node.target) for node in gm.graph.nodes] == before
    outputs = gm(x)
    assert outputs[0].data_ptr() != x.data_ptr() != outputs[1].data_ptr()
    assert not outputs[3].requires_grad


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.clone()
        z[:, 0] = 1.0
        return y + z


def test_a_copy_stays_where_something_is_overwritten() -> None:
    model, x = Overwriting(), torch.randn(4, 3)
    gm = captured(model, x)
    Tidy()(gm)
    torch.testing.assert_close(gm(x), model(x))


def test_a_lifted_graph_can_be_tidied_too() -> None:
    model, x = Untidy(), images()
    gm = captured(model, x)
    Lift()(gm)
    Tidy()(gm)
    assert not any(word in gm.code for word in ("detach", "dropout", "sum"))
    torch.testing.assert_close(gm(x), model(x))


def test_the_postcondition_names_what_is_left() -> None:
    gm = captured(Untidy(), images())
    with pytest.raises(RewriteError, match=r"cat.*at .*test_tidy.py.*computes nothing"):
        Tidy().ensures(gm)
