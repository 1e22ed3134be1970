"""A plan within a limit on the latency; where nothing may depend on the machine, time is counted, not measured."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.errors import BudgetError
from fxprune.latency import clock
from tests.networks import images
from tests.networks.classifiers import conv_norm


def counted(call: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    """Seconds as a machine would take that moves a hundred million numbers a second, in eights."""
    sizes = [size for value in inputs if isinstance(value, Tensor) for size in [value.shape]]
    return 1e-4 + 1e-8 * sum(torch.Size(-(-size // 8) * 8 for size in shape).numel() for shape in sizes)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "least_seconds", counted)


def pruned(tmp_path: Path, **options: Any) -> fp.Result:
    timing = options.pop("timing", fp.Timing(batch=4, table=tmp_path / "latency.json"))
    more = {"recipe": "magnitude", "budget": fp.Budget(latency=0.7), "timing": timing, "verify": False, **options}
    return fp.prune(network(), images(), **more)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [conv_norm(a, b) for a, b in pairwise((3, 64, 96, 64))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.mark.usefixtures("counting")
def test_what_was_measured_of_the_plan_is_within_the_limit(tmp_path: Path) -> None:
    result = pruned(tmp_path)
    report = result.report
    assert report.after["latency"] <= report.budget["latency"] == 0.7 * report.before["latency"]
    assert report.after["latency"] > 0.5 * report.before["latency"]  # the limit is used
    gm = fp.capture(network(), images())
    counts = [
        sum(clock.Clock(gm, fp.Timing(batch=4, table=tmp_path / "other.json")).measure(graph).pieces.values())
        for graph in (gm, fp.shrink(gm, result.plan))
    ]
    assert abs(counts[1] / counts[0] - report.after["latency"] / report.before["latency"]) < 0.02


@pytest.mark.usefixtures("counting")
def test_widths_are_those_that_the_hardware_likes(tmp_path: Path) -> None:
    groups = pruned(tmp_path).report.groups
    assert all(group.after % 8 == 0 or group.after == group.before for group in groups)


@pytest.mark.usefixtures("counting")
def test_other_limits_hold_as_well(tmp_path: Path) -> None:
    report = pruned(tmp_path, budget=fp.Budget(latency=0.8, params=0.3)).report
    assert all(report.after[kind] <= limit for kind, limit in report.budget.items())
    assert {"latency", "params"} == set(report.budget)


@pytest.mark.usefixtures("counting")
def test_as_small_as_an_error_and_a_latency_allow(tmp_path: Path) -> None:
    budget = fp.Budget(latency=0.9, max_error=0.9)
    report = pruned(tmp_path, budget=budget, recipe="fast", calibration=images(32)).report
    assert report.after["latency"] <= report.budget["latency"]


@pytest.mark.usefixtures("counting")
def test_a_latency_out_of_reach_is_refused_with_how_far_one_can_go(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"latency=.* cannot be reached: the smallest is"):
        pruned(tmp_path, budget=fp.Budget(latency=2.0))


def test_real_times_are_kept_and_give_the_same_plan_again(tmp_path: Path) -> None:
    first = pruned(tmp_path)
    table = (tmp_path / "latency.json").read_text()
    again = pruned(tmp_path)
    assert (tmp_path / "latency.json").read_text() == table
    assert again.plan == first.plan and again.report.after == first.report.after
    assert first.report.after["latency"] <= first.report.budget["latency"]
    note = next(note for note in first.report.notes if "latency" in note)
    assert note.startswith("latency is in microseconds, batch 4 on ") and note.endswith("eager")


@pytest.mark.usefixtures("counting")
def test_an_interrupted_run_goes_on_with_what_was_measured(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "passes" and done == 2:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path, progress=interrupt, **options)
    (tmp_path / "latency.json").unlink()
    resumed = pruned(tmp_path, **options)
    assert not (tmp_path / "latency.json").exists()  # nothing was measured again
    plain = pruned(tmp_path)
    assert resumed.plan == plain.plan and resumed.report.after == plain.report.after


def test_before_training_latency_is_no_budget() -> None:
    with pytest.raises(BudgetError, match="latency= is for prune: before training give flops="):
        fp.precrop(network(), images(), budget=fp.Budget(latency=0.5))


@pytest.mark.slow  # compiles the pieces, and the whole
def test_compiled_networks_are_timed_piece_by_piece(tmp_path: Path) -> None:
    report = pruned(tmp_path, timing=fp.Timing(batch=4, compiled=True, table=tmp_path / "latency.json")).report
    assert report.after["latency"] <= report.budget["latency"]
    assert any(note.endswith("compiled") for note in report.notes)
