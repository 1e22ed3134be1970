"""Views of views are written as one, where each step is read by the next alone; values stay the same, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.passes.base import clone
from fxprune.passes.tidy import Tidy
from tests.networks import Calls, calls, modified


def tidied(function: Callable[[Tensor], object], x: Tensor) -> fx.GraphModule:
    """Captured and tidied: the same outputs, and nothing left to do."""
    gm = clone(fp.capture(Calls(function), x))
    wanted = gm(x)
    Tidy()(gm)
    torch.testing.assert_close(gm(x), wanted, rtol=0, atol=0)
    assert not modified(Tidy()(gm))
    for node in gm.graph.nodes:
        assert node.op == "output" or "val" in node.meta
    return gm


def names(gm: fx.GraphModule) -> list[str]:
    """What the calls are of, but for arithmetic."""
    found = [str(node.target).split(".")[1] for node in gm.graph.nodes if str(node.target).startswith("aten.")]
    return [name for name in found if name in {"transpose", "permute", "unsqueeze", "squeeze", "unbind", "select"}]


X = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: x.transpose(0, 1).transpose(1, 2).relu(), "permute.default(x, [1, 2, 0, 3])"),
        (lambda x: x.permute(3, 1, 2, 0).transpose(0, 2).relu(), "permute.default(x, [2, 1, 3, 0])"),
        (lambda x: x.permute(2, 1, 0, 3).permute(0, 1, 3, 2).relu(), "permute.default(x, [2, 1, 3, 0])"),
        (lambda x: x.unsqueeze(0).transpose(0, -2).squeeze(-2).relu(), "permute.default(x, [2, 0, 1, 3])"),
        (lambda x: x.transpose(1, 2).transpose(1, 3).transpose(2, 3).relu(), "transpose.int(x, 1, 3)"),
        (lambda x: x.transpose(1, 2).transpose(2, 1).relu(), "relu.default(x)"),
    ],
)
def test_moves_of_moves_are_one_move(function: Callable[[Tensor], object], text: str) -> None:
    gm = tidied(function, X)
    assert text in calls(gm)
    assert len(names(gm)) == ("relu.default(x)" not in text)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x: x.unsqueeze(1).transpose(2, 3).relu(), 2),  # a dimension of one stays
        (lambda x: x[:, :1].transpose(1, 2).squeeze(2).relu(), 2),  # what is taken away was not inserted
        (lambda x: (y := x.transpose(1, 2), y.transpose(2, 3)), 2),  # what is between has a reader of its own
        (lambda x: x.transpose(1, 2).transpose(1, 2), 2),  # the output would be the input itself
    ],
)
def test_what_is_more_than_a_move_stays(function: Callable[[Tensor], object], left: int) -> None:
    assert len(names(tidied(function, X))) == left


@given(st.lists(st.tuples(st.sampled_from(["transpose", "permute", "insert"]), st.permutations(range(4))), max_size=5))
def test_any_chain_of_moves_keeps_its_value(steps: list[tuple[str, list[int]]]) -> None:
    def function(x: Tensor) -> Tensor:
        for name, dims in steps:
            if name == "transpose":
                x = x.transpose(dims[0], dims[1])
            elif name == "permute":
                x = x.permute(dims)
            else:
                x = x.unsqueeze(dims[0]).transpose(dims[0], dims[1]).squeeze(dims[1])
        return x + 1

    tidied(function, X)


def test_a_tensor_that_is_taken_apart_is_unbound() -> None:
    gm = tidied(lambda x: F.relu(x[:, 0] * x[:, -1] - x[:, 1]), X)
    assert names(gm) == ["unbind"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 0] * x[:, 1],  # two of three
        lambda x: x[:, 0] * x[:, 1] * x[:, 2] + x.sum((1,)),  # and read as a whole
        lambda x: x[:, 0] * x[:, 1] * x[:, 1],
        lambda x: x[0, 0] * x[0, 1],
        lambda x: x[:, 0].sum() * x[:, :, 1].sum() * x[:, 2].sum(),
    ],
)
def test_what_is_not_taken_apart_wholly_is_selected_from(function: Callable[[Tensor], object]) -> None:
    assert "select" in names(gm := tidied(function, X)) and "unbind" not in names(gm)


def test_attention_is_written_with_the_names_of_its_arguments() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    code = fp.prune(layer, torch.randn(2, 5, 16), budget=fp.Budget(params=0.8), recipe="magnitude").model.code
    assert "query, key, value = x.unbind()" in code or "query, key, value = y.unbind()" in code
    assert "F.scaled_dot_product_attention(query, key, value" in code
