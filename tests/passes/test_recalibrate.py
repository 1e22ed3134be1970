"""Recalibrate: statistics that were spoilt come back; those that are right stay."""

from __future__ import annotations

import pytest
import torch

from fxprune.calibrate.images import Calibration, calibration_for
from fxprune.calibrate.statistics import batch_norm_statistics
from fxprune.capture import capture
from fxprune.errors import RewriteError
from fxprune.passes.base import clone, replace_tensor
from fxprune.passes.recalibrate import Recalibrate
from tests.networks import build, calls, images, modified
from tests.passes.test_reconstruct import shrunk


def test_spoilt_statistics_are_mended() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    gm.meta["fxprune"]["calibration"] = calibration_for(gm, images(256, seed=3))
    for name, value in batch_norm_statistics(gm, gm.meta["fxprune"]["calibration"]).items():
        replace_tensor(gm, name, value.float())  # as a network that was trained on such images has them
    gm.meta["fxprune"]["dense"] = clone(gm)
    first = next(name for name, _ in gm.named_buffers() if name.endswith("running_var"))
    replace_tensor(gm, first, 25 * gm.get_buffer(first))
    text = calls(gm)
    assert modified(Recalibrate()(gm))
    ((stage, before, after),) = gm.meta["fxprune"]["stages"]
    assert stage == "batch norm" and after < before
    assert calls(gm) == text and not modified(Recalibrate()(gm))


def test_statistics_that_are_right_stay() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    gm.meta["fxprune"]["calibration"] = calibration_for(gm, images(64, seed=3))
    gm.meta["fxprune"]["dense"] = clone(gm)
    before = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    assert not modified(Recalibrate()(gm))
    assert all(torch.equal(buffer, before[name]) for name, buffer in gm.named_buffers())


def test_statistics_too_large_for_half_precision_are_not_put_in_place() -> None:
    gm = clone(capture(build("Residual").half(), (images().half(),)))
    gm.meta["fxprune"]["calibration"] = calibration_for(gm, 2000 * images(64, seed=3).half())
    gm.meta["fxprune"]["dense"] = clone(gm)
    found = batch_norm_statistics(gm, gm.meta["fxprune"]["calibration"])
    assert any(float(value.max()) > torch.finfo(torch.half).max for value in found.values())
    before = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    assert not modified(Recalibrate()(gm))
    assert all(torch.equal(buffer, before[name]) for name, buffer in gm.named_buffers())


def test_a_network_without_batch_norm_is_left_alone() -> None:
    _, small = shrunk("Plain")
    assert not modified(Recalibrate()(small))
    assert "stages" not in small.meta["fxprune"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RewriteError, match="Recalibrate needs dense, calibration"):
        Recalibrate()(clone(capture(build("Plain"), (images(),))))


def test_held_out_images_are_not_looked_at() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    batches = [(images(8),), (torch.full((8, 3, 8, 8), torch.nan),)]
    found = batch_norm_statistics(gm, Calibration(batches, held_out=1))
    assert found and all(bool(value.isfinite().all()) for value in found.values())
