"""The steps of a descent: in proportion to each weight, matrices orthogonalised, shapes and start untouched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fxprune.calibrate.descent import Descent
from fxprune.calibrate.lesson import Lesson, Tensors
from fxprune.checkpoint import Checkpoint
from tests.calibrate.test_lesson import lesson
from tests.passes.test_reconstruct import shrunk


def moved(rate: float) -> tuple[Tensors, Tensors]:
    """Weights before and after two steps, of which the schedule takes the first whole and half of the second."""
    _, small = shrunk("Residual")
    start = {name: p.detach().clone() for name, p in small.named_parameters()}
    before = {name: w.clone() for name, w in start.items()}
    last, _ = Descent(2, rate, 0, "refine").run(lesson(small, 24, 24), start)
    assert all(torch.equal(start[name], w) for name, w in before.items())
    return before, last


def test_every_matrix_moves_by_the_same_share_of_its_size() -> None:
    before, after = moved(1e-3)
    for name, weight in before.items():
        assert after[name].shape == weight.shape
        if weight.ndim > 1 and min(weight.flatten(1).shape) > 1:
            step = (after[name] - weight).flatten(1)
            share = float(step.norm() / weight.norm())
            # an orthogonalised step has the root mean square 0.2 up to the iteration's error, of full rank
            assert 0.5e-4 < share < 6e-4, name
            singular = torch.linalg.svdvals(step)
            assert float(singular[0] / singular.median()) < 10, name


def test_a_vector_moves_by_a_tenth() -> None:
    before, after = moved(1e-3)
    vectors = [name for name, weight in before.items() if weight.ndim == 1 and bool(weight.any())]
    assert vectors
    for name in vectors:
        assert 0.4e-4 < float((after[name] - before[name]).norm() / before[name].norm()) < 3e-4, name


class Faint(Lesson):
    """Gradients that float16 cannot hold."""

    says_nothing = False

    def __init__(self) -> None:
        self.training = range(1)

    def judge(self, weights: Mapping[str, Tensor], images: float = math.inf) -> float:
        return 1.0

    def losses(self, first: int, weights: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        yield 2e-8 * weights["bias"].to(torch.float16).float().sum()


def test_small_gradients_of_half_precision_do_not_vanish(tmp_path: Path) -> None:
    start = {"bias": torch.ones(4, dtype=torch.float16)}
    last, _ = Descent(3, 1e-2, 0, "refine", Checkpoint(tmp_path)).run(Faint(), start)
    assert bool((last["bias"] < 0.999).all())
    again, _ = Descent(3, 1e-2, 0, "refine", Checkpoint(tmp_path)).run(Faint(), start)  # from the state that was kept
    assert torch.equal(again["bias"], last["bias"])


class Spoiled(Faint):
    """Every second loss has a gradient that is no number."""

    def __init__(self) -> None:
        self.training = range(2)

    def losses(self, first: int, weights: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        yield torch.stack([(weight * (math.nan if first else 1.0)).sum() for weight in weights.values()]).sum()


def test_a_gradient_that_is_no_number_spoils_nothing() -> None:
    start = {"bias": torch.ones(4), "weight": torch.ones(4, 4)}
    last, _ = Descent(6, 1e-2, 0, "refine").run(Spoiled(), start)
    assert all(bool(last[name].isfinite().all()) and bool((last[name] < start[name]).all()) for name in start)
