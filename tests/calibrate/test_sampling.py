"""How many rows and images are enough, and how they are drawn."""

from __future__ import annotations

import pytest
import torch

from fxprune.calibrate.sampling import FEWEST_ROWS, THRIFTY, Sampling, enough_rows, sample


def test_rows_are_fewer_where_they_abound() -> None:
    assert enough_rows(inputs=576, images=64, per_image=32, per_input=8) == 32
    assert enough_rows(inputs=576, images=256, per_image=32, per_input=8) == 18
    assert enough_rows(inputs=27, images=1024, per_image=32, per_input=8) == FEWEST_ROWS
    assert enough_rows(inputs=27, images=1024, per_image=1, per_input=8) == 1


@pytest.mark.parametrize(("total", "rows"), [(10, 20), (100, 90), (100, 30), (100_000, 1000)])
def test_a_sample_has_each_position_at_most_once_in_order(total: int, rows: int) -> None:
    drawn = sample(total, rows, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, drawn.unique()) and bool(((drawn >= 0) & (drawn < total)).all())
    assert 0.97 * min(total, rows) <= len(drawn) <= rows


def test_a_sampling_prints_what_is_not_as_by_default() -> None:
    assert repr(Sampling()) == "Sampling()" and repr(Sampling(images=8)) == "Sampling(images=8)"
    assert eval(repr(THRIFTY)) == THRIFTY


def test_trials_get_the_images_that_their_runs_afford() -> None:
    assert Sampling().images_of_trials(runs=50, images=1024) == 128
    assert THRIFTY.images_of_trials(runs=0, images=1024) == 128
    assert THRIFTY.images_of_trials(runs=16, images=1024) == 48
    assert THRIFTY.images_of_trials(runs=5000, images=1024) == 16
    assert Sampling().images_of_trials(runs=1, images=8) == 8
