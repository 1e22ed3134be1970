"""The steps of a descent: in proportion to each weight, matrices orthogonalised, shapes and start untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune.calibrate.descent import PROBES, SLOWER, Descent
from fxprune.calibrate.lesson import Tensors
from fxprune.checkpoint import Checkpoint
from tests.calibrate.test_lesson import lesson
from tests.passes.test_reconstruct import shrunk


def moved(rate: float) -> tuple[Tensors, Tensors]:
    """Weights before and after two steps, of which the schedule takes the second whole."""
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
        assert float((after[name] - before[name]).norm() / before[name].norm()) < 3e-4, name


def probed(rate: float, steps: int = 50, checkpoint: Checkpoint | None = None) -> tuple[float, list[float]]:
    """The rate that is chosen from `rate` downwards, and the held-out loss after a probe at each rate."""
    _, small = shrunk("Residual")
    start, taught = {name: p.detach().clone() for name, p in small.named_parameters()}, lesson(small, 24, 24)
    descent = Descent(steps, rate, 0, "refine", checkpoint or Checkpoint())
    losses = [descent._probe(taught, start, rate / SLOWER**number) for number in range(PROBES)]
    return descent.with_measured_rate(taught, start).rate, losses


@pytest.mark.parametrize("rate", [3.0, 0.02])
def test_the_rate_is_the_best_of_some_as_short_runs_tell(rate: float) -> None:
    chosen, losses = probed(rate)
    worse = [number for number in range(1, PROBES) if losses[number] > losses[number - 1]]
    last = worse[0] if worse and losses[worse[0] - 1] < unmoved() else PROBES
    best = min(range(last), key=losses.__getitem__)
    assert chosen == rate / SLOWER**best
    assert (chosen < rate) == (rate == 3.0)


def unmoved() -> float:
    """The held-out loss of the weights as they are."""
    _, small = shrunk("Residual")
    return lesson(small, 24, 24).judge(dict(small.named_parameters()))


def test_a_short_run_is_its_own_probe_and_one_that_goes_on_keeps_its_rate(tmp_path: Path) -> None:
    assert probed(3.0, steps=24)[0] == 3.0
    kept = Checkpoint.open(tmp_path / "run", {"seed": 0})
    kept.save("refine", {})
    assert probed(3.0, checkpoint=kept)[0] == 3.0
