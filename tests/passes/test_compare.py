"""Compare: zero where nothing is lost; before and after every correction elsewhere."""

from __future__ import annotations

import pytest

from fxprune.capture import capture
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.compare import Compare
from fxprune.passes.fuse import Fuse
from fxprune.passes.reconstruct import Reconstruct
from tests.networks import build, calls, images, modified
from tests.passes.test_reconstruct import shrunk


def test_each_layer_is_compared_before_and_after_the_corrections() -> None:
    _, small = shrunk("Residual", count=128)
    text = calls(small)
    bare = clone(small)
    assert not modified(Compare()(bare)) and calls(bare) == text
    assert all(before == after for _, before, after in bare.meta["fxprune"]["errors"])
    for step in (Reconstruct(), Fuse(), Compare()):
        step(small)
    errors = small.meta["fxprune"]["errors"]
    assert [name for name, *_ in errors] == [name for name, *_ in bare.meta["fxprune"]["errors"]]
    assert [before for _, before, _ in errors] == [before for _, before, _ in bare.meta["fxprune"]["errors"]]
    assert errors[0][2] == pytest.approx(0, abs=1e-9)  # the first layer reads the images, which are as they were
    assert errors[-1][2] < errors[-1][1]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RewriteError, match="Compare needs dense, coupling, plan, calibration"):
        Compare()(clone(capture(build("Plain"), (images(),))))
