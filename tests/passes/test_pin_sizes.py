"""PinSizes: before and after, and what it leaves alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.passes.base import clone
from fxprune.passes.pin_sizes import PinSizes
from tests.networks import build, calls, images, modified


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
