"""Recipes: visible tuples of passes, each of which prunes; errors as a budget; restart; what is weak is said."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from fxprune import demo
from fxprune.calibrate.images import _Batches as Batches
from fxprune.calibrate.statistics import norms_of
from fxprune.errors import BudgetError, CalibrationError, ResumeError
from fxprune.recipes import RECIPES
from tests.networks import build, images

HALF = fp.Budget(flops=0.5)
DATA = images(batch=128, seed=3)


def pruned(**options: Any) -> fp.Result:
    settings: dict[str, Any] = {"budget": HALF, "calibration": DATA, **options}
    return fp.prune(build("Residual"), images(), **settings)


@cache
def pruned_by_default() -> fp.Result:
    return pruned()


def digits(**options: Any) -> fp.Result:
    """The trained network of the demo, pruned."""
    data = demo.load()[0].images[:256]
    settings: dict[str, Any] = {"budget": HALF, "calibration": data, **options}
    return fp.prune(demo.trained(), data[:2], **settings)


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        ("fast", "Choose PinSizes Shrink Verify Reconstruct Fuse Recalibrate Compare Tidy Lift"),
        ("psp", "Choose PinSizes Squeeze Shrink Verify Reconstruct Fuse Recalibrate Refine Compare Tidy Lift"),
        ("best", "Choose PinSizes Squeeze Shrink Verify Reconstruct Fuse Recalibrate Refine Compare Tidy Lift"),
        ("datafree", "Synthesise Choose PinSizes Shrink Verify Reconstruct Fuse Refine Compare Tidy Lift"),
        ("magnitude", "Choose PinSizes Shrink Verify Tidy Lift"),
    ],
)
def test_a_pipeline_is_a_visible_tuple(recipe: str, passes: str) -> None:
    data = None if recipe == "datafree" else DATA
    found = fp.pipeline(recipe, budget=HALF, calibration=data)
    assert " ".join(type(step).__name__ for step in found) == passes
    bare = fp.pipeline(recipe, budget=HALF, calibration=data, verify=False)
    assert " ".join(type(step).__name__ for step in bare) == passes.replace(" Verify", "")


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow) if name == "best" else name for name in RECIPES]
)
def test_every_recipe_meets_the_budget_and_is_proven(recipe: str) -> None:
    needs_none = recipe in ("datafree", "magnitude")
    result = pruned(recipe=recipe, calibration=None if needs_none else DATA)
    assert result.report.recipe == recipe
    assert result.report.after["flops"] <= 0.5 * result.report.before["flops"]
    assert result.report.verification is not None and result.report.verification.ok
    assert torch.isfinite(result.model(DATA)).all()


def test_stages_tell_how_the_held_out_error_falls() -> None:
    stages = pruned_by_default().report.stages
    assert [stage for stage, *_ in stages] == ["squeeze", "least squares", "batch norm", "refine"]
    assert all(after <= before for _, before, after in stages[:3])
    assert stages[-1].after < stages[0].before
    assert [one.after for one in stages[1:3]] == pytest.approx([one.before for one in stages[2:]], rel=1e-4)


def test_importance_and_allocation_can_be_named() -> None:
    plans = {name: pruned(recipe="fast", importance=name).plan for name in ("second_order", "random")}
    assert plans["second_order"] != plans["random"]
    spread = []
    for name in ("uniform", "greedy"):
        report = digits(recipe="fast", allocation=name, multiple_of=1).report
        shares = [group.after / group.before for group in report.groups]
        spread.append(max(shares) - min(shares))
    assert spread[0] < 0.2 * spread[1]


def test_as_small_as_an_error_allows() -> None:
    errors, costs = [], []
    for most in (0.02, 0.2):
        report = digits(recipe="fast", budget=fp.Budget(max_error=most)).report
        errors.append(report.stages[-1].after)
        costs.append(report.after["flops"])
        assert report.stages[-1].after <= most
        assert not any("above max_error" in text for text in report.weak)
    assert costs[1] < costs[0] < report.before["flops"]
    assert errors[1] > 0.05  # little of what was allowed is left over


def test_an_error_that_cannot_be_met() -> None:
    with pytest.raises(BudgetError, match="max_error"):
        pruned(recipe="fast", budget=fp.Budget(flops=0.2, max_error=1e-6))
    with pytest.raises(CalibrationError, match="this budget needs it"):
        pruned(recipe="magnitude", calibration=None, budget=fp.Budget(max_error=0.1))


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = pruned_by_default()

    def stop(stage: str, done: int, total: int, error: float | None = None) -> None:
        if stage == "refine" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(checkpoint=state, progress=stop)
    with pytest.raises(ResumeError, match="seed: 0 there, 1 now"):
        pruned(checkpoint=state, seed=1)
    told: list[str] = []
    result = pruned(checkpoint=state, progress=lambda stage, *_: told.append(stage))
    assert "squeeze" not in told and "measure" not in told and "refine" in told
    assert result.plan == whole.plan
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], tensor), name
    assert not state.exists()


def test_a_pipeline_takes_a_checkpoint_and_no_folder() -> None:
    with pytest.raises(fp.errors.FxpruneError, match="use Checkpoint.open"):
        fp.pipeline("psp", budget=HALF, calibration=DATA, checkpoint="folder")  # type: ignore[arg-type]


def test_weak_results_are_announced() -> None:
    few = pruned(recipe="fast", calibration=DATA[:8]).report
    assert "only 8 different calibration images: give a few hundred for a better result" in few.weak
    assert "warning: only 8 different calibration images" in str(few)
    alike = pruned(recipe="fast", calibration=DATA[:1].expand(80, -1, -1, -1)).report
    assert any("nothing was corrected" in text for text in alike.weak)
    small = digits(recipe="fast", budget=fp.Budget(flops=0.03)).report
    assert any("of the variance of the network's outputs is lost" in text for text in small.weak)
    assert not digits(recipe="fast", budget=fp.Budget(flops=0.9)).report.weak


def test_images_that_the_network_was_not_trained_on_are_announced() -> None:
    data = demo.load()[0].images[:64]
    for changed in (10 * data, data / 10):
        assert any(
            "the images are unlike those" in text for text in digits(recipe="fast", calibration=changed).report.weak
        )


def test_without_corrections_an_error_is_kept_all_the_same() -> None:
    report = digits(recipe="magnitude", budget=fp.Budget(max_error=0.1)).report
    ((stage, before, after),) = report.stages
    assert stage == "shrink" and before == after <= 0.1
    assert report.after["flops"] < report.before["flops"]


def test_an_error_needs_images_that_are_held_out() -> None:
    for data in (demo.load()[0].images[:3], demo.load()[0].images[:1].expand(40, -1, -1, -1)):
        with pytest.raises(CalibrationError, match="none can be held out: give a few hundred"):
            digits(recipe="fast", budget=fp.Budget(max_error=0.1), calibration=data)


def test_images_that_teach_nothing_choose_nothing() -> None:
    plans = [digits(recipe=recipe, calibration=demo.load()[0].images[:3]).plan for recipe in ("fast", "magnitude")]
    assert plans[0] == plans[1]


def test_batch_norms_that_remember_nothing_are_noticed() -> None:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    fresh = fp.prune(nn.Sequential(*layers), images(), budget=HALF, recipe="datafree")
    assert any(text.startswith("the BatchNorms have the statistics that they began with") for text in fresh.report.weak)
    assert not any(norm.untouched for norm in norms_of(fp.capture(build("Residual"), images())))


def test_who_makes_images_takes_none() -> None:
    with pytest.raises(CalibrationError, match="looks at no others: leave calibration out"):
        digits(recipe="datafree")


def test_fast_reads_each_image_at_most_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    read = Batches.__getitem__

    def counted(batches: Batches, index: int) -> Any:
        fetched.extend(batches.parts[index].tolist())
        return read(batches, index)

    monkeypatch.setattr(Batches, "__getitem__", counted)
    result = pruned(recipe="fast", calibration=images(batch=512, seed=3))
    assert [stage for stage, *_ in result.report.stages] == ["least squares", "batch norm"]
    times = torch.bincount(torch.tensor(fetched))
    assert len(times) == 512 and int(times.min()) >= 1
    assert len(fetched) <= 4 * 512
