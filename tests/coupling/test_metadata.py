"""A graph whose metadata are missing or stale, or that is none of ATen calls, is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

import fxprune as fp
from fxprune.errors import CaptureError
from tests.networks import build, images


def first_relu(gm: fx.GraphModule) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.target is torch.ops.aten.relu.default)


def replaced(gm: fx.GraphModule) -> None:
    gm.get_submodule("conv1.0").weight = nn.Parameter(torch.randn(2, 3, 3, 3))


def narrowed(gm: fx.GraphModule) -> None:
    node = first_relu(gm)
    node.meta["val"] = node.meta["val"][:, :2]


def without(gm: fx.GraphModule) -> None:
    del first_relu(gm).meta["val"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            replaced,
            r"`conv1.0.weight` has the shape \(2, 3, 3, 3\), and the graph records .* call fxprune.capture anew",
        ),
        (narrowed, r"meta\['val'\] of `relu` \(aten.relu.default\) .* is stale, .* must set it anew"),
        (without, r"`relu` \(aten.relu.default\) .*has no meta\['val'\]"),
    ],
)
def test_stale_metadata_are_refused(spoil: Callable[[fx.GraphModule], None], message: str) -> None:
    gm = fp.capture(build("Residual"), images())
    spoil(gm)
    with pytest.raises(CaptureError, match=message):
        fp.analyze(gm)


def test_a_lifted_graph_is_refused() -> None:
    result = fp.prune(build("Residual"), images(), budget=fp.Budget(params=0.6), recipe="magnitude")
    with pytest.raises(CaptureError, match=r"\(call_module\).* is no ATen call: Lift has run"):
        fp.analyze(result.model)


def test_a_fault_that_is_none_of_the_metadata_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a fault of our own")

    gm = fp.capture(build("Residual"), images())
    monkeypatch.setattr("fxprune.coupling.groups.propagate", fail)
    with pytest.raises(ValueError, match=re.escape("a fault of our own")):
        fp.analyze(gm)
