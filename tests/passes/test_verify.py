"""Verify: it must notice what is wrong, and only that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.errors import RewriteError, VerificationError
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import Shrink
from fxprune.passes.verify import Verify, confirm, relative_error
from tests.networks import build, images, inputs, modified

PLAN = fp.Plan({"conv1.0.weight": [0, 2, 5]})


def test_says_what_was_compared() -> None:
    gm = fp.capture(build("Residual"), images())
    proof = fp.verify(gm, fp.shrink(gm, PLAN), PLAN)
    assert proof.ok
    assert proof.max_error < 1e-12
    assert len(proof.outputs) == 1
    assert str(proof).startswith("verified: max error")
    assert "float64" in proof.method


@pytest.mark.parametrize("wrong", [[0, 2, 4], [1, 2, 5], [0, 5]])
def test_notices_a_wrong_channel(wrong: list[int]) -> None:
    gm = fp.capture(build("Residual"), images())
    small = fp.shrink(gm, fp.Plan({"conv1.0.weight": wrong}))
    proof = fp.verify(gm, small, PLAN)
    assert not proof.ok
    assert proof.max_error > 100 * proof.tolerance
    assert str(proof).startswith("FAILED")


def test_notices_nan_and_another_shape() -> None:
    gm = fp.capture(build("Residual"), images())
    small = fp.shrink(gm, PLAN)
    with torch.no_grad():
        small.get_parameter("head.bias").fill_(float("nan"))
    assert not fp.verify(gm, small, PLAN).ok
    assert fp.verify(gm, torch.nn.Flatten(), PLAN).max_error == float("inf")


class Logarithm(nn.Module):
    """NaN where an input is negative, as noise is."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.hidden(x.log()).relu())
        return y


def test_inputs_on_which_the_original_gives_nan_prove_nothing() -> None:
    plan = fp.Plan({"hidden.weight": [0, 2, 5]})
    gm = fp.capture(Logarithm(), torch.rand(2, 4) + 0.1)
    proof = fp.verify(gm, fp.shrink(gm, plan), plan)
    assert proof.ok and "1 input set," in proof.method
    gm = fp.capture(Logarithm(), -torch.ones(2, 4))
    with pytest.raises(VerificationError, match="gives NaN, on the example inputs and on random ones"):
        fp.verify(gm, fp.shrink(gm, plan), plan)


def test_statistics_are_taken_over_the_kept_channels() -> None:
    gm = fp.capture(build("LayerScaled"), images())
    plan = fp.Plan({"scale": [0, 3]})
    proof = fp.verify(gm, fp.shrink(gm, plan), plan)
    assert proof.ok
    assert "statistics of normalisations over the kept channels" in proof.method


def test_the_pass_keeps_the_proof_and_refuses_a_wrong_network() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    with pytest.raises(RewriteError, match="nothing to verify"):
        Verify()(gm)
    for step in (PinSizes(), Shrink(PLAN), Verify()):
        step(gm)
    assert gm.meta["fxprune"]["verification"].ok
    assert not modified(Verify()(gm))
    del gm.meta["fxprune"]["verification"]
    with torch.no_grad():
        gm.get_parameter("head.weight").mul_(1.001)
    with pytest.raises(VerificationError, match="was not returned"):
        Verify()(gm)


def test_the_original_is_left_alone() -> None:
    model = build("Residual")
    gm = fp.capture(model, images())
    before = gm(images())
    fp.verify(gm, fp.shrink(gm, PLAN), PLAN)
    assert torch.equal(gm(images()), before)
    assert next(model.parameters()).dtype == torch.float32


def test_a_lifted_network_must_compute_what_its_graph_does() -> None:
    gm = clone(fp.capture(build("Shuffle"), images()))
    lifted = clone(gm)
    Lift()(lifted)
    confirm(gm, lifted)
    other = copy.deepcopy(lifted)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1e-4)
    with pytest.raises(VerificationError, match="is off by"):
        confirm(gm, other)


def masked_by_hand(model: nn.Module, producers: list[str], dim: int, stays: Tensor, x: Tensor) -> Tensor:
    """What the model returns when the values of these modules are zeroed at the positions of `dim` that leave."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], value: Tensor) -> Tensor:
        return value * stays.view([-1 if axis == dim else 1 for axis in range(value.ndim)])

    for name in producers:
        model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(
    ("name", "producers", "dim"),
    [
        ("SpatialAttentionByMean", ["conv"], 1),  # a mean over channels, pinned to the original's width
        ("RMSNormByHand", ["embed", "norm", "down"], 2),
        ("CosineAttention", ["q", "k"], 2),  # lengths of queries and keys
        ("Attention", ["q", "k"], 2),  # the scale of the original's heads
    ],
)
def test_removing_is_zeroing_activations(name: str, producers: list[str], dim: int) -> None:
    """An oracle that knows nothing of slices: hooks on the modules that make the channels."""
    model = build(name).double()
    x = inputs(name)[0].double()
    gm = fp.capture(model, x)
    group = next(item for item in fp.analyze(gm).groups if item.name.startswith(producers[0]))
    kept = [0, 2, 4, 7] if group.blocks else [0, 2, 3]
    stays = torch.tensor([float(unit in kept) for unit in range(group.width)], dtype=torch.float64)
    small = fp.shrink(gm, fp.Plan({group.name: kept}))
    wanted = masked_by_hand(model, producers, dim, stays, x)
    assert torch.allclose(small(x), wanted, rtol=1e-10, atol=1e-12)


class Spectrum(nn.Module):
    """Its outputs are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.head(self.hidden(x).relu()))


def test_complex_outputs_are_rounded_too() -> None:
    x, model = torch.randn(8, 4), Spectrum().eval()
    result = fp.prune(model, x, budget=fp.Budget(params=0.6), recipe="magnitude")
    proof = result.report.verification
    assert proof is not None and proof.ok and result.model(x).is_complex()
    values = torch.randn(5, dtype=torch.complex128)
    assert 0 < relative_error(values * (1 + 1e-15), values) < 1e-14
    assert relative_error(values * 1j, values) > 0.1
