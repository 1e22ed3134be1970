"""Calibration data that says little: no NaN, no worse than not correcting, and a warning where the result is weak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune import demo
from fxprune.errors import CalibrationError

HALF = fp.Budget(flops=0.5)
TRAINING, TEST = demo.load()
DIGITS = TRAINING.images[:512]
FEW = DIGITS[:36]  # 32 to learn from, a step, and 4 to judge by


class WithoutNorm(nn.Module):
    """Convolutions with biases and no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, 2, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def with_dead_channels() -> nn.Module:
    """The digits network with filters that put out nothing but zero."""
    model = demo.trained()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "conv1" in name or "bn1" in name:
                tensor[::3] = 0
    return model


def errors(model: nn.Module, data: Tensor, **options: Any) -> tuple[float, float, fp.Result]:
    """The squared error of the logits of real test digits: channels only removed, and as `prune` returns it."""
    first = data[:2]
    result = fp.prune(model, first, budget=HALF, calibration=data, **options)
    bare = fp.shrink(fp.capture(model, first), result.plan)
    x = TEST.images[:256].to(first)
    with torch.no_grad():
        wanted = model(x).double()
        removed, corrected = (float((each(x) - wanted).square().mean()) for each in (bare, result.model))
    return removed, corrected, result


def one_class() -> Tensor:
    return TRAINING.images[TRAINING.labels == 3][: len(FEW)]


@pytest.mark.parametrize("recipe", ["fast", pytest.param("psp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("data", "warning"),
    [
        pytest.param(DIGITS[:8], "only 8 different calibration images", id="eight images"),
        pytest.param(DIGITS[:1], "nothing was corrected", id="one image"),
        pytest.param(one_class(), None, id="one class"),
        pytest.param(DIGITS[:1].expand(80, -1, -1, -1), "nothing was corrected", id="one image 80 times"),
        pytest.param(torch.zeros(80, 1, 16, 16), "nothing was corrected", id="black images"),
        pytest.param(torch.full((80, 1, 16, 16), 1e4), "nothing was corrected", id="glaring images"),
        pytest.param(DIGITS[:5], "only 5 different calibration images", id="five images"),
    ],
)
def test_images_that_say_little(data: Tensor, warning: str | None, recipe: str) -> None:
    removed, corrected, result = errors(demo.trained(), data, recipe=recipe)
    assert corrected <= removed
    assert warning is None or any(warning in text for text in result.report.weak)


@pytest.mark.parametrize("recipe", ["fast", pytest.param("psp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(with_dead_channels(), id="dead channels"),
        pytest.param(WithoutNorm(), id="no BatchNorm"),
        pytest.param(demo.trained().to(memory_format=torch.channels_last), id="channels_last"),
    ],
)
def test_networks_that_are_not_as_usual(model: nn.Module, recipe: str) -> None:
    removed, corrected, result = errors(model.eval(), FEW, recipe=recipe)
    assert corrected < 0.5 * removed
    assert result.report.verification is not None and result.report.verification.ok


@pytest.mark.parametrize(
    ("dtype", "recipe"),
    [
        (torch.float16, "fast"),  # a CPU is slow at it
        (torch.float64, "fast"),
        pytest.param(torch.bfloat16, "psp", marks=pytest.mark.slow),
        (torch.bfloat16, "fast"),
    ],
)
def test_other_precisions(dtype: torch.dtype, recipe: str) -> None:
    removed, corrected, result = errors(demo.trained().to(dtype), FEW.to(dtype), recipe=recipe)
    assert corrected < 0.5 * removed
    assert {tensor.dtype for tensor in result.model.parameters()} == {dtype}


def test_values_that_are_too_large_are_named_as_such() -> None:
    data = FEW.clone()
    data[3] = 1e30
    with pytest.raises(
        CalibrationError, match="reads of the calibration images is not finite, or too large to be squared"
    ):
        fp.prune(demo.trained(), data[:2], budget=HALF, calibration=data, recipe="fast")


def test_weights_stay_as_they_lie_in_memory() -> None:
    model = demo.trained().to(memory_format=torch.channels_last)
    result = fp.prune(model, FEW[:2], budget=HALF, calibration=FEW, recipe="fast")
    kernels = [weight for weight in result.model.parameters() if weight.ndim == 4]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_images_of_another_size_are_taken_or_refused_by_shape() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 6, 3), nn.Linear(6 * 14 * 14, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).flatten(1))

    with pytest.raises(CalibrationError, match=r"shape \(4, 1, 20, 20\) does not fit the model's"):
        fp.prune(Flat(), DIGITS[:2], budget=HALF, calibration=torch.randn(4, 1, 20, 20))
