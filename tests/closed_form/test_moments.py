"""Moments: the same as from all rows at once, in any order of arrival, and unharmed by a large mean."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune.closed_form.moments import BLOCK, Moments


def gathered(x: Tensor, y: Tensor, size: int) -> Moments:
    moments = Moments(x.shape[0], x.shape[2], y.shape[2])
    for part_x, part_y in zip(x.split(size, 1), y.split(size, 1), strict=True):
        moments.add(part_x, part_y)
    return moments


@settings(max_examples=20)
@given(rows=st.integers(2, 40), size=st.integers(1, 15), seed=st.integers(0, 99), centred=st.booleans())
def test_batches_add_up_to_the_moments_of_all_rows(rows: int, size: int, seed: int, centred: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64) + 5
    y = torch.randn(2, rows, 2, generator=generator, dtype=torch.float64) - 3
    moments = gathered(x, y, size)
    dx, dy = (x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)) if centred else (x, y)
    xx, xy, yy = moments.second(centred)
    assert moments.count == rows
    torch.testing.assert_close(moments.mean_x, x.mean(1))
    torch.testing.assert_close(moments.mean_y, y.mean(1))
    torch.testing.assert_close(xx, dx.mT @ dx / rows)
    torch.testing.assert_close(xy, dx.mT @ dy / rows)
    torch.testing.assert_close(yy, dy.square().mean(1))


def test_a_large_mean_costs_no_precision() -> None:
    x = torch.randn(1, 4000, 4) * 0.01 + 1000
    moments = gathered(x, x[:, :, :1], 500)
    expected = torch.cov(x[0].double().mT, correction=0)
    torch.testing.assert_close(moments.second()[0][0], expected, rtol=1e-3, atol=1e-9)


def test_without_rows_there_is_nothing_and_no_nan() -> None:
    moments = Moments(1, 3, 2)
    moments.add(torch.zeros(1, 0, 3), torch.zeros(1, 0, 2))
    assert moments.count == 0
    assert all(bool((part == 0).all()) for part in (*moments.second(), moments.mean_x, moments.mean_y))


def test_many_inputs_are_multiplied_block_by_block() -> None:
    x = torch.randn(2, 50, 2 * BLOCK + 5, dtype=torch.float64)
    moments = gathered(x, x[:, :, :2], 20)
    before = moments.second(centred=False)
    torch.testing.assert_close(before[0], x.mT @ x / 50)
    assert moments.second(centred=False) is before
    moments.add(x, x[:, :, :2])
    torch.testing.assert_close(moments.second(centred=False)[0], x.mT @ x / 50)
    assert moments.second(centred=False) is not before


def test_half_precision_overflows_nowhere() -> None:
    rows = torch.full((1, 64, 3), 300.0).half() * torch.randn(1, 64, 1).half().sign()
    moments = Moments(1, 3, 3)
    moments.add(rows, rows)
    xx, xy, yy = moments.second(centred=False)
    torch.testing.assert_close(xx, torch.full_like(xx, 90000.0))
    torch.testing.assert_close(xy, xx)
    torch.testing.assert_close(yy, torch.full_like(yy, 90000.0))
