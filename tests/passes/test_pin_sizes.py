"""PinSizes: before and after, and what it leaves alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.passes.base import clone
from fxprune.passes.pin_sizes import PinSizes
from tests.networks import build, calls, captured, images, inputs, modified


def test_chunk_along_channels_becomes_a_split_with_sizes() -> None:
    gm = clone(fp.capture(build("Shuffle"), images()))
    assert "chunk = chunk.default(view_1, 2, 1)" in calls(gm)
    before = gm(images())
    assert modified(PinSizes()(gm))
    assert "chunk = split_with_sizes.default(view_1, [4, 4], 1)" in calls(gm)
    assert torch.equal(gm(images()), before)
    assert not modified(PinSizes()(gm))


class BackEnds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        rows = x.chunk(2, 2)[0]
        return self.left(rows[:, :-2]) + self.right(rows[:, -2:])


def test_ends_counted_from_the_back_become_plain_ones() -> None:
    gm = clone(fp.capture(BackEnds(), images()))
    PinSizes()(gm)
    assert "chunk.default" in calls(gm)  # along the image, where nothing shrinks
    assert "1, 0, 4)" in calls(gm)
    assert "1, 4, 6)" in calls(gm)
    plan = fp.Plan({"conv.weight#1": [1, 2, 3], "conv.weight#2": [1]})
    small = fp.shrink(fp.capture(BackEnds(), images()), plan)
    assert "1, 0, 3)" in calls(small)
    assert "1, 3, 4)" in calls(small)


def test_a_mean_over_channels_becomes_a_sum_over_the_width_of_the_original() -> None:
    gm = clone(captured("SpatialAttentionByMean"))
    before = gm(images())
    PinSizes()(gm)
    text = calls(gm)
    assert "sum_dim_int_list[1, 8, 8] = sum.dim_IntList(conv2d, [1], True)" in text
    assert "mean[1, 8, 8] = mul.Tensor(sum_dim_int_list)" in text
    assert "mean_1[5] = mean.dim" in text  # over the image, where nothing shrinks
    assert torch.allclose(gm(images()), before, atol=1e-6)
    mean = next(node for node in gm.graph.nodes if node.name == "mean")
    assert mean.args[1] == 1 / 8


def test_attention_keeps_the_scale_of_the_original() -> None:
    gm = clone(captured("Attention"))
    (before,) = (node for node in gm.graph.nodes if "scaled_dot_product" in node.name)
    assert "scale" not in before.kwargs
    PinSizes()(gm)
    assert before.kwargs["scale"] == 4**-0.5
    whole = clone(captured("Attention"))
    assert not modified(PinSizes(heads=True)(whole))  # heads leave, their size stays


def test_a_graph_that_is_shrunk_is_left_alone() -> None:
    gm = fp.shrink(captured("Attention"), fp.Plan({"q.weight": [0, 4]}))
    assert not modified(PinSizes()(gm))
    assert gm(*inputs("Attention")).shape == (2, 3)
