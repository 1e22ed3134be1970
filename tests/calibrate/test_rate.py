"""The rate of a descent: the best of some, by short runs; what they cost and tell; runs that go on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fxprune.calibrate.descent import Descent
from fxprune.calibrate.lesson import Lesson, Tensors
from fxprune.calibrate.rate import FEWEST, RATES, SLOWER, at_measured_rate, short_length
from fxprune.checkpoint import Checkpoint
from tests.calibrate.test_lesson import lesson
from tests.passes.test_reconstruct import shrunk


def case() -> tuple[Lesson, Tensors]:
    """A lesson, and the weights to begin with."""
    _, small = shrunk("Residual")
    return lesson(small, 24, 24), {name: p.detach().clone() for name, p in small.named_parameters()}


@pytest.mark.parametrize("rate", [3.0, 0.02, 1e38])
def test_the_rate_is_the_best_of_some_as_short_runs_tell(rate: float) -> None:
    taught, start = case()
    descent = Descent(RATES * FEWEST, rate, 0, "refine")
    tried = [replace(descent, steps=FEWEST, rate=rate / SLOWER**number) for number in range(RATES)]
    losses = [taught.judge(short.short_run(taught, start, 0.0)) for short in tried]
    chosen = tried.index(replace(tried[0], rate=at_measured_rate(descent, taught, start).rate))
    if rate == 1e38:
        assert all(map(math.isinf, losses)) and chosen == RATES - 1
        return
    assert losses[chosen] == min(losses[: chosen + 1])
    assert chosen + 1 == RATES or losses[chosen + 1] > losses[chosen] or min(losses) == losses[chosen]
    assert (chosen > 0) == (rate == 3.0)


def test_short_runs_are_reported_with_the_steps_and_nothing_goes_backwards() -> None:
    taught, start = case()
    told: list[tuple[int, int]] = []

    def report(done: int, total: int, error: float) -> None:
        assert error <= taught.judge(start)
        told.append((done, total))

    descent = Descent(45, 0.02, 0, "refine", report=report)
    at_measured_rate(descent, taught, start).run(taught, start)
    assert {total for _, total in told} == {RATES * FEWEST + 45}
    done = [done for done, _ in told]
    assert done == sorted(set(done)) and done[0] == 1 and done[-1] == RATES * FEWEST + 45


def test_few_steps_keep_their_rate_and_so_does_a_run_that_goes_on(tmp_path: Path) -> None:
    taught, start = case()
    assert at_measured_rate(Descent(RATES * FEWEST - 1, 3.0, 0, "refine"), taught, start).rate == 3.0
    kept = Checkpoint.open(tmp_path / "run", {"seed": 0})
    begun = Descent(45, 0.5, 0, "refine", kept)
    begun.run(taught, start)
    assert at_measured_rate(replace(begun, rate=3.0), taught, start).rate == 0.5


@pytest.mark.parametrize(("steps", "length"), [(20, 10), (80, 10), (200, 25), (400, 50), (1250, 50), (2000, 80)])
def test_short_runs_are_long_enough_for_the_momentum_where_that_is_affordable(steps: int, length: int) -> None:
    assert short_length(steps) == length
