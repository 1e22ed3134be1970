"""A pass takes as many images as its values leave room for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.room import bytes_per_image, images_at_once
from fxprune.capture import capture


def test_all_values_of_a_pass_fit_the_memory() -> None:
    gm = capture(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), (torch.zeros(2, 3, 16, 16),))
    each = 2 * 8 * 16 * 16 * 4
    assert bytes_per_image(gm) == each
    assert images_at_once(gm, 5 * each) == 5 and images_at_once(gm, 5 * each - 1) == 4 and images_at_once(gm, 1) == 1


def test_large_images_come_in_small_batches() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1024, 1), nn.ReLU())
    gm = capture(net, (torch.zeros(2, 1, 256, 256),))  # half a gigabyte an image
    assert calibration_for(gm, torch.zeros(32, 1, 256, 256)).sizes == [4] * 8


def test_an_axis_before_the_images_counts() -> None:
    class TokensFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1).relu()

    gm = capture(TokensFirst(), (torch.zeros(2, 7, 5),))
    assert bytes_per_image(gm) == 2 * 7 * 5 * 4  # of each of both calls
