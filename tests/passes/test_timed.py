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


def pruned(tmp_path: Path, **options: Any) -> fp.Result:
    timing = options.pop("timing", fp.Timing(batch=4, table=tmp_path / "latency.json"))
    more = {"recipe": "magnitude", "budget": fp.Budget(latency=0.7), "timing": timing, "verify": False, **options}
    return fp.prune(network(), images(), **more)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [conv_norm(a, b) for a, b in pairwise((3, 64, 96, 64))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("share", [0.95, 0.9, 0.7, 0.5])
def test_what_was_measured_of_the_plan_is_within_the_limit(tmp_path: Path, share: float) -> None:
    result = pruned(tmp_path, budget=fp.Budget(latency=share))
    gm = fp.capture(network(), images())
    again = clock.Clock(gm, fp.Timing(batch=4, table=tmp_path / "other.json"))
    dense, small = (sum(again.measure(graph).pieces.values()) for graph in (gm, fp.shrink(gm, result.plan)))
    assert small <= share * dense
    report = result.report  # says what was measured
    assert abs(report.after["latency"] / report.before["latency"] - small / dense) < 1e-6
    assert report.after["latency"] <= report.budget["latency"] == share * report.before["latency"]


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


@pytest.mark.usefixtures("counting")
def test_times_are_kept_and_give_the_same_plan_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pruned(tmp_path)
    table = (tmp_path / "latency.json").read_text()
    monkeypatch.delattr(clock, "least_seconds")  # nothing is measured again
    again = pruned(tmp_path)
    assert (tmp_path / "latency.json").read_text() == table
    assert again.plan == first.plan and again.report.after == first.report.after
    assert first.report.after["latency"] <= first.report.budget["latency"]
    note = next(note for note in first.report.notes if "latency" in note)
    assert note.startswith("latency is in nanoseconds, batch 4 on ") and note.endswith("eager")


class Positions(nn.Module):
    """An input without a batch, a mean over channels, and two poolings that differ in their arguments alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x + positions).relu(), 2)
        x = nn.functional.max_pool2d(self.second(x * x.mean(1, keepdim=True)).relu(), 4)
        return self.last(nn.functional.dropout(x.flatten(1), 0.5, True))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("compiled", [False, True])
def test_unusual_networks_are_timed_and_leave_no_trace(
    tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)  # which pieces are compiled is what matters here
    timing = fp.Timing(batch=4, compiled=compiled, table=tmp_path / "latency.json")
    model, inputs = Positions().eval(), (images(), torch.randn(8, 8))
    before = torch.get_rng_state()
    result = fp.prune(model, inputs, budget=fp.Budget(latency=0.8), recipe="magnitude", timing=timing)
    assert torch.equal(before, torch.get_rng_state())
    assert result.report.after["latency"] <= result.report.budget["latency"]
    assert "tensor(" not in (tmp_path / "latency.json").read_text()


def test_a_piece_is_compiled_once_for_all_sizes_and_for_each_computation_by_itself(tmp_path: Path) -> None:
    gm = fp.capture(Positions().eval(), (images(), torch.randn(8, 8)))
    watch = clock.Clock(gm, fp.Timing(batch=4, compiled=True, table=tmp_path / "latency.json"))
    made: list[Callable[..., Any]] = []

    def noted(call: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        made.append(call)
        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", noted)
        for kept in (64, 8, 16):
            watch.measure(fp.shrink(gm, fp.Plan({"first.weight": range(kept)})))
    assert len(made) == 3  # before, between and after the convolutions


@pytest.mark.usefixtures("counting")
def test_a_frozen_group_stays_also_where_it_is_named_by_a_generator(tmp_path: Path) -> None:
    step = fp.pipeline(
        "magnitude",
        budget=fp.Budget(latency=0.7),
        freeze=(name for name in ["0"]),
        timing=fp.Timing(batch=4, table=tmp_path / "latency.json"),
    )[0]
    gm = fp.capture(network(), images())
    step(gm)
    assert "0.0.weight" not in gm.meta["fxprune"]["plan"].kept and gm.meta["fxprune"]["plan"].kept


def test_a_timing_is_a_timing() -> None:
    with pytest.raises(BudgetError, match=r"timing must be a Timing, e\.g\. fxprune\.Timing\(batch=32\), not 32"):
        fp.prune(network(), images(), budget=fp.Budget(latency=0.5), recipe="magnitude", timing=32)  # type: ignore[arg-type] # the mistake


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
