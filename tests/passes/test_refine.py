"""Refine: held-out loss falls or the weights stay; deterministic; signature, names and statistics as before."""

from __future__ import annotations

import pytest
import torch

from fxprune.capture import capture
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.fuse import Fuse
from fxprune.passes.learning import put_if_better
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.refine import Refine
from tests.networks import NETWORKS, build, calls, images, modified
from tests.passes.test_reconstruct import shrunk


@pytest.mark.parametrize("name", NETWORKS)
def test_the_held_out_loss_never_rises_and_only_parameters_change(name: str) -> None:
    _, small = shrunk(name)
    Reconstruct()(small)
    Fuse()(small)
    text, buffers = calls(small), {key: value.clone() for key, value in small.named_buffers()}
    grads = {key: value.requires_grad for key, value in small.named_parameters()}
    changed = modified(Refine(epochs=2)(small))
    ((stage, before, after),) = small.meta["fxprune"]["stages"][1:]
    assert stage == "refine" and (changed or after == before)
    assert calls(small) == text and all(torch.equal(value, buffers[key]) for key, value in small.named_buffers())
    assert {key: value.requires_grad for key, value in small.named_parameters()} == grads
    assert not modified(Refine(epochs=2)(small))


def test_the_outputs_come_closer_and_the_same_way_twice() -> None:
    gm, small = shrunk("Residual", count=256)
    x = images(64, seed=9)
    twin = clone(small)
    start = float((small(x) - gm(x)).detach().square().sum())
    for graph in (small, twin):
        Refine(epochs=4)(graph)
    assert float((small(x) - gm(x)).detach().square().sum()) < 0.9 * start
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), twin.parameters(), strict=True))


def test_steps_that_lead_astray_are_not_kept() -> None:
    _, small = shrunk("Residual")
    before = [parameter.detach().clone() for parameter in small.parameters()]
    assert not modified(Refine(epochs=1, rate=1e3)(small))
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), before, strict=True))


def test_what_makes_it_worse_is_taken_back() -> None:
    _, small = shrunk("Residual")
    before = {name: parameter.detach().clone() for name, parameter in small.named_parameters()}
    assert not put_if_better(small, "refine", {name: 10 * value for name, value in before.items()})
    assert all(torch.equal(parameter, before[name]) for name, parameter in small.named_parameters())
    ((_, error, left),) = small.meta["fxprune"]["stages"]
    assert error == left


def test_without_held_out_images_nothing_changes() -> None:
    _, small = shrunk("Residual", count=4)
    assert not modified(Refine()(small))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RewriteError, match="Refine needs dense, coupling, plan, calibration"):
        Refine()(clone(capture(build("Plain"), (images(),))))
