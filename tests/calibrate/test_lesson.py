"""A step of several batches has the gradient of one large batch, and only parts of it are ever at work; errors are
measured where the target is finite, and their gradients lie in memory as the values do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.lesson import Lesson, Tensors, mean_squared
from fxprune.capture import capture
from fxprune.coupling.kept import Kept
from fxprune.passes.base import state, teacher
from fxprune.passes.shrink import shrink
from fxprune.types import Plan
from tests.networks import images
from tests.passes.test_reconstruct import shrunk


def lesson(small: fx.GraphModule, batch: int | None, step: int, data: Tensor | None = None) -> Lesson:
    found = state(small)
    data = images(96, seed=3) if data is None else data
    held = calibration_for(small, data, batch_size=batch, held_out=0.25)
    kept = Kept.under(found["coupling"], found["plan"])
    return Lesson(small, teacher(small), kept, held, inside=5.0, batch_size=step, augment=False, memory=1 << 30)


def gradients(taught: Lesson, small: fx.GraphModule) -> tuple[float, Tensors]:
    """The loss of the first step and its gradients."""
    weights = {name: p.detach().clone().requires_grad_() for name, p in small.named_parameters()}
    total = 0.0
    for term in taught.losses(taught.training[0], weights, torch.Generator().manual_seed(0)):
        total += float(term.detach())
        term.backward()
    return total, {name: w.grad for name, w in weights.items() if w.grad is not None}


@pytest.mark.parametrize("batch", [4, 8, 12])
def test_a_step_of_small_batches_has_the_gradient_of_a_large_one(batch: int) -> None:
    _, small = shrunk("Residual")
    whole, parts = lesson(small, 24, 24), lesson(small, batch, 24)
    assert len(whole.training) == len(parts.training) == 3
    parts._variance = whole._variance  # each takes that of its own first batch, and random projections of its batches
    parts._weights, parts._cut_weights = whole._weights, whole._cut_weights
    loss, wanted = gradients(whole, small)
    total, found = gradients(parts, small)
    assert total == pytest.approx(loss, rel=1e-5) and found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_last_step_has_what_is_left_and_no_image_that_is_held_out() -> None:
    _, small = shrunk("Residual")
    taught = lesson(small, 8, 40)  # 12 batches, of which 3 are held out
    assert list(taught.training) == [0, 5]
    terms = list(taught.losses(5, dict(small.named_parameters()), torch.Generator()))
    assert len(terms) == 4


@pytest.mark.parametrize(("batch", "step", "images_a_step"), [(24, 24, 24), (8, 24, 24), (7, 16, 14), (24, 7, 7)])
def test_a_step_says_how_many_images_it_takes(batch: int, step: int, images_a_step: int) -> None:
    _, small = shrunk("Residual")
    assert lesson(small, batch, step).images_a_step == images_a_step


def test_weights_that_run_away_are_not_taken_for_masks() -> None:
    _, small = shrunk("Residual")
    taught = lesson(small, 24, 24)
    assert math.isinf(taught.judge({name: p.detach() * 1e30 for name, p in small.named_parameters()}))
    assert not taught._meets_infinity


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_an_error_has_the_layout_of_the_value(layout: torch.memory_format, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    value, target = torch.randn(2, 3, 5, 4, 6, generator=generator)
    value = value.contiguous(memory_format=layout).requires_grad_()
    weight = torch.rand(1, 5, 4, 6, generator=generator) if weighted else torch.ones(1)
    error = mean_squared(value, target, weight if weighted else None)
    (gradient,) = torch.autograd.grad(error, value)
    assert gradient.is_contiguous(memory_format=layout)
    difference = weight * (value.detach() - target)
    assert float(error.detach()) == pytest.approx(float(difference.square().mean()), rel=1e-5)
    torch.testing.assert_close(gradient, 2 * weight * difference / value.numel())


class FirstToken(nn.Module):
    """Two blocks that normalise before their layers; of the second's output only the first token is read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.wide, self.back = nn.LayerNorm(8), nn.Linear(5, 5), nn.Linear(8, 12), nn.Linear(12, 8)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x).mT).mT
        x = x + self.back(self.wide(x).relu())
        y: Tensor = self.head((x + self.last(x))[:, 0])
        return y


def test_tokens_that_nobody_reads_do_not_count() -> None:
    torch.manual_seed(0)
    gm = capture(FirstToken(), (torch.randn(2, 5, 8),))
    small = shrink(gm, Plan({"wide.weight": [0, 2, 4, 6, 8]}))
    taught = lesson(small, None, 16, torch.randn(64, 5, 8))
    after, before = taught._weights["add_1"], taught._weights["add"]
    assert before.shape == after.shape == (1, 5, 8)
    assert bool((after[:, 0] > 0).all()) and not after[:, 1:].any()
    assert bool((before > 0).all(2)[0, 0]) and float(before.square().mean()) == pytest.approx(1, rel=1e-4)
    value = torch.randn(4, 5, 8)
    target = value.clone()
    target[:, 1:] += 1
    assert float(taught._error("add_1", value, target)) == 0 < float(taught._error("add_1", value, target + 1))


class Masked(nn.Module):
    """Logits of which the first may never be chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).masked_fill(torch.arange(4) == 0, -torch.inf)


def test_what_is_not_finite_in_the_dense_outputs_teaches_nothing() -> None:
    gm = capture(Masked(), (torch.randn(2, 5),))
    small = shrink(gm, Plan({"first.weight": [0, 2, 4, 6]}))
    taught = lesson(small, None, 16, torch.randn(64, 5))
    loss, found = gradients(taught, small)
    assert 0 < loss < math.inf
    assert not found["second.weight"][0].any() and found["second.weight"][1:].any()
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert math.isfinite(taught.judge({}))
