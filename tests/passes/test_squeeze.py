"""Squeeze: the channels that leave become superfluous; the teacher stays; deterministic; restarts to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from fxprune.calibrate.descent import trainable
from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.judge import output_error
from fxprune.capture import capture
from fxprune.checkpoint import Checkpoint
from fxprune.cost import cost
from fxprune.coupling import analyze
from fxprune.coupling.kept import Kept
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.fuse import Fuse
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.reconstruct import FEW_ROWS, Reconstruct
from fxprune.passes.shrink import Shrink
from fxprune.passes.squeeze import Squeeze, _leaving
from tests.networks import NETWORKS, build, calls, images, modified, random_plan


def planned(name: str, count: int = 128) -> fx.GraphModule:
    """A graph with a plan and calibration, not yet shrunk."""
    gm = clone(capture(build(name), (images(),)))
    coupling = analyze(gm)
    plan = random_plan(coupling, 1, balanced=True)
    gm.meta["fxprune"] |= {
        "coupling": coupling,
        "plan": plan,
        "calibration": calibration_for(gm, images(count, seed=3), batch_size=16),
    }
    return gm


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_the_channels_then_changes_less(name: str) -> None:
    gm = planned(name)
    found, text = gm.meta["fxprune"], calls(gm)
    changed = modified(Squeeze(epochs=8)(gm))
    ((stage, before, after),) = found["stages"]
    assert stage == "squeeze" and (after < before if changed else after == before)
    assert calls(gm) == text and not modified(Squeeze(epochs=8)(gm))
    for step in (PinSizes(), Shrink(), Reconstruct(rows_per_input=FEW_ROWS), Fuse()):
        step(gm)
    assert output_error(found["teacher"], gm, found["calibration"]) == pytest.approx(after, rel=1e-3, abs=1e-9)


def test_what_leaves_is_zero_and_what_stays_has_moved() -> None:
    gm = planned("Grouped", count=256)
    original = {name: tensor.detach().clone() for name, tensor in gm.named_parameters()}
    assert modified(Squeeze(epochs=30, rate=0.02)(gm))
    found = gm.meta["fxprune"]
    kept = Kept.under(found["coupling"], found["plan"])
    for name, tensor in gm.named_parameters():
        stays = kept.stays(found["coupling"].param_fields[name], tensor.ndim).expand(tensor.shape)
        assert tensor.ndim == 1 or not tensor[~stays].any()
        assert not torch.equal(tensor[stays], original[name][stays])
    assert all(torch.equal(t, original[name]) for name, t in found["teacher"].named_parameters())


def test_weights_that_got_worse_are_not_kept() -> None:
    gm = planned("Residual")
    before = {name: tensor.detach().clone() for name, tensor in gm.named_parameters()}
    assert not modified(Squeeze(epochs=1, rate=1e3)(gm))
    assert all(torch.equal(tensor, before[name]) for name, tensor in gm.named_parameters())


def test_the_same_seed_gives_the_same_weights_also_after_a_restart(tmp_path: Path) -> None:
    whole, stopped = planned("Residual"), planned("Residual")
    Squeeze(epochs=4, seed=5)(whole)

    def stop(done: int, total: int, error: float) -> None:
        if done > total // 2 + 1:
            raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "state")
    fresh = clone(stopped)
    with pytest.raises(KeyboardInterrupt):
        Squeeze(epochs=4, seed=5, checkpoint=checkpoint, progress=stop)(stopped)
    told: list[int] = []
    Squeeze(epochs=4, seed=5, checkpoint=checkpoint, progress=lambda done, total, error: told.append(done))(fresh)
    assert told[0] > 1
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))


def test_without_held_out_images_nothing_changes() -> None:
    gm = planned("Residual", count=3)
    assert not modified(Squeeze()(gm))
    Shrink()(gm)
    assert not modified(Squeeze()(gm))  # a second run of a pipeline is no pass in the wrong order


def test_a_graph_that_has_been_shrunk_is_refused() -> None:
    gm = planned("Residual")
    Shrink()(gm)
    with pytest.raises(RewriteError, match="Squeeze came too late: Shrink has run, .* Put it before Shrink"):
        Squeeze()(gm)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RewriteError, match="Squeeze needs coupling, plan, calibration"):
        Squeeze()(clone(capture(build("Plain"), (images(),))))


def test_work_for_less_than_an_epoch_is_not_begun() -> None:
    gm = planned("Residual")
    gm.meta["fxprune"]["cost"] = cost(gm, gm.meta["fxprune"]["coupling"])
    before = {name: tensor.clone() for name, tensor in gm.named_parameters()}
    assert not modified(Squeeze(work=1.0)(gm)) and "stages" not in gm.meta["fxprune"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in gm.named_parameters())


def test_the_schedule_is_not_rounded_to_half_precision() -> None:
    gm = planned("Residual").to(torch.bfloat16)
    found = gm.meta["fxprune"]
    masks = _leaving(trainable(gm), Kept.under(found["coupling"], found["plan"]))
    assert masks and all(mask.dtype is torch.float32 for mask in masks.values())
