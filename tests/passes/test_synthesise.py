"""Synthesise: hands on images where there are none, and leaves the graph alone."""

from __future__ import annotations

from fxprune.calibrate.images import calibration_for
from fxprune.capture import capture
from fxprune.passes.base import clone
from fxprune.passes.synthesise import Synthesise
from tests.networks import build, calls, images, modified


def test_images_are_handed_on_and_the_graph_stays() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    text, told = calls(gm), []
    step = Synthesise(16, progress=lambda stage, done, total, error=None: told.append(stage))
    assert not modified(step(gm)) and calls(gm) == text
    assert gm.meta["fxprune"]["calibration"].count == 16
    assert set(told) == {"synthesise"}


def test_images_that_are_there_stay() -> None:
    gm = clone(capture(build("Residual"), (images(),)))
    gm.meta["fxprune"]["calibration"] = given = calibration_for(gm, images(8))
    Synthesise(16)(gm)
    assert gm.meta["fxprune"]["calibration"] is given
