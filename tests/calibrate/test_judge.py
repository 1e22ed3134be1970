"""Judging: errors by hand, on the held-out images alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.calibrate.images import Calibration
from fxprune.calibrate.judge import layer_errors, output_error
from fxprune.capture import capture
from fxprune.coupling import analyze
from fxprune.coupling.kept import Kept
from fxprune.passes.base import clone, replace_tensor
from fxprune.passes.shrink import shrink
from fxprune.types import Plan
from tests.networks import build, images


def test_the_error_is_relative_to_how_the_outputs_differ_within_an_image() -> None:
    model = nn.Linear(3, 4)
    gm = clone(capture(model, torch.randn(2, 3)))
    twin = clone(gm)
    replace_tensor(twin, "bias", model.bias.detach() + torch.tensor([1.0, 0, 0, 0]))
    seen, judged = torch.randn(5, 3), torch.randn(7, 3)
    logits = model(judged).detach().double()
    spread = (logits - logits.mean(1, keepdim=True)).square().sum()
    calibration = Calibration([(seen,), (judged,)], held_out=1)
    assert output_error(gm, gm, calibration) == 0
    assert output_error(gm, twin, calibration) == pytest.approx(float(7 / spread), rel=1e-4)
    replace_tensor(twin, "bias", torch.full((4,), math.nan))
    assert output_error(gm, twin, calibration) == math.inf


def test_without_held_out_images_all_judge() -> None:
    gm = clone(capture(nn.Linear(3, 4), torch.randn(2, 3)))
    twin = clone(gm)
    replace_tensor(twin, "bias", torch.zeros(4))
    batches = [(torch.randn(5, 3),), (torch.randn(5, 3),)]
    whole = output_error(gm, twin, Calibration(batches))
    assert whole != output_error(gm, twin, Calibration(batches, held_out=1))
    assert whole == pytest.approx(
        output_error(gm, twin, Calibration([(torch.cat([b for (b,) in batches]),)])), rel=1e-6
    )


def test_layers_are_compared_at_the_channels_that_stay() -> None:
    gm = capture(build("Plain"), (images(),))
    plan = Plan({"fc1.weight": [0, 1, 2]})
    kept = Kept.under(analyze(gm), plan)
    (errors,) = layer_errors(gm, [shrink(gm, plan)], kept, Calibration([(images(32, seed=4),)]))
    assert list(errors) == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert errors["conv1.weight"] == errors["conv2.weight"] == 0
    assert errors["fc1.weight"] < 1e-10 < errors["fc2.weight"]


def test_a_dense_network_is_run_once_until_it_changes() -> None:
    gm = clone(capture(nn.Linear(3, 4), torch.randn(2, 3)))
    twin = clone(gm)
    replace_tensor(twin, "bias", torch.zeros(4))
    fetched: list[int] = []

    class Batches(list[tuple[torch.Tensor]]):
        def __getitem__(self, index: Any) -> Any:
            fetched.append(index)
            return super().__getitem__(index)

    calibration = Calibration(Batches([(torch.randn(5, 3),), (torch.randn(5, 3),)]), held_out=1)
    first = output_error(gm, twin, calibration)
    assert output_error(gm, twin, calibration) == first > 0
    replace_tensor(gm, "weight", torch.zeros(4, 3))
    anew = output_error(gm, twin, calibration)
    with torch.no_grad():
        gm.get_parameter("bias").add_(torch.arange(4.0))
    moved = output_error(gm, twin, calibration)
    assert len({first, anew, moved}) == 3
    assert moved == output_error(clone(gm), twin, calibration)
    assert set(fetched) == {1}


class Heads(nn.Module):
    """Two outputs of very different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.boxes = nn.Linear(5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(x), 800 * self.boxes(x)


def test_each_output_counts_alike_whatever_its_scale() -> None:
    gm = clone(capture(Heads(), (torch.randn(2, 5),)))
    calibration = Calibration([(torch.randn(64, 5),)])
    errors = []
    for head in ("logits", "boxes"):
        twin = clone(gm)
        for name in ("weight", "bias"):
            replace_tensor(twin, f"{head}.{name}", 0.9 * twin.get_parameter(f"{head}.{name}").detach())
        errors.append(output_error(gm, twin, calibration))
    assert errors[0] == pytest.approx(0.5 * 0.1**2, rel=0.5) and errors[1] == pytest.approx(errors[0], rel=0.5)
