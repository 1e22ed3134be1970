"""The linearised network: what signals become, how the scores follow, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune as fp
from fxprune.errors import RewriteError
from fxprune.widths.linearised import linearised, ones
from fxprune.widths.signals import Signals
from tests.networks import NETWORKS, captured


def absolute(gm: fx.GraphModule) -> dict[str, Tensor]:
    return {name: weight.detach().abs().double() for name, weight in gm.named_parameters()}


class Function(nn.Module):
    """A function of the input times 2."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.map, self.function = nn.Linear(1, 1), function
        nn.init.constant_(self.map.weight, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.map(x))  # type: ignore[operator]


def test_the_sum_of_the_outputs_by_hand() -> None:
    torch.manual_seed(1)
    gm = fp.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3))
    weights = absolute(gm)
    total = weights["2.weight"] @ weights["0.weight"] @ torch.ones(3, dtype=torch.float64)
    assert float(linearised(gm, {})) == pytest.approx(float(total.sum().log()), abs=1e-12)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.gelu(x) + 5, 8.0),
        (lambda x: F.batch_norm(x, torch.ones(1), torch.ones(1)), 8.0),
        (lambda x: F.layer_norm(x, (1,)), 8.0),
        (lambda x: x.double(), 8.0),
        (lambda x: 3 * x, 24.0),
        (lambda x: x / -2, 4.0),
        (lambda x: 1 - x, 8.0),
        (lambda x: x - 3 * x, 32.0),
        (lambda x: torch.sub(x, x, alpha=2), 24.0),
        (lambda x: x * x, 16.0),
        (lambda x: x * torch.sigmoid(x), 8.0),
        (lambda x: x * torch.sigmoid(x).unsqueeze(1).squeeze(1), 8.0),
        (lambda x: torch.sigmoid(x), 8.0),
        (lambda x: torch.sigmoid(x) + x, 16.0),
        (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True)), 8.0),
        (lambda x: x / x.sum(), 8.0),
        (lambda x: F.max_pool1d(x.unsqueeze(0), 1).squeeze(0), 8.0),
        (lambda x: torch.max(x, torch.tensor(9.0)), 8.0),
        (lambda x: x.amax(0), 2.0),
        (lambda x: x.max(0).values, 2.0),
        (lambda x: F.pad(x, (1, 2), value=-math.inf), 8.0),
        (lambda x: torch.cat([x, torch.ones_like(x)], 1), 8.0),
        (lambda x: torch.cat([x, torch.ones(x.shape[0], 3)], 1), 8.0),
        (lambda x: x.expand(-1, 5), 40.0),
        (lambda x: x.sum(0), 8.0),
        (lambda x: torch.where(x > 0, x, 0.0), 8.0),
        (lambda x: x.t() @ x, 16.0),
        (lambda x: torch.softmax(x @ x.t(), -1) @ x, 8.0),
        (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0], 8.0),
    ],
)
def test_what_signals_become(function: object, expected: float) -> None:
    # A static batch of four; each signal is 2.
    gm = fp.capture(Function(function), torch.randn(4, 1), dynamic_shapes={"x": None})
    assert math.exp(float(linearised(gm, {}))) == pytest.approx(expected, abs=1e-12)


def test_a_maximum_over_an_image_is_its_mean() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    for pool in (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)):
        gm = fp.capture(pool, image)
        assert math.exp(float(linearised(gm, {}, (image.double(),)))) == pytest.approx(120 / 4)
    windows = fp.capture(nn.MaxPool2d(3, 2, 1), image)  # the padding is no part of a mean
    assert math.exp(float(linearised(windows, {}, (torch.ones(1, 1, 4, 4, dtype=torch.float64),)))) == pytest.approx(4)


def test_one_sample_where_the_batch_is_dynamic() -> None:
    model = nn.Linear(3, 2)
    assert [x.shape for x in ones(fp.capture(model, torch.randn(5, 3)))] == [(1, 3)]
    assert [x.shape for x in ones(fp.capture(model, torch.randn(5, 3), dynamic_shapes={"input": None}))] == [(5, 3)]


@pytest.mark.parametrize("name", ["Plain", "Grouped"])
def test_synaptic_flow_is_conserved(name: str) -> None:
    # Theorem 2 of Tanaka et al.: the scores of every cut of a network without biases add up to the sum of the outputs.
    gm = captured(name)
    weights = {key: weight.requires_grad_() for key, weight in absolute(gm).items()}
    slopes = torch.autograd.grad(linearised(gm, weights), list(weights.values()), materialize_grads=True)
    scores = {key: (weights[key] * slope).sum().item() for key, slope in zip(weights, slopes, strict=True)}
    layers = Signals(gm).layers
    assert len(layers) == 4
    for key in scores:
        assert scores[key] == pytest.approx(1.0 if key in layers else 0.0, abs=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_linear_in_the_inputs(name: str) -> None:
    gm = captured(name)
    twice = [2 * x for x in ones(gm)]
    assert float(linearised(gm, {}, twice) - linearised(gm, {})) == pytest.approx(math.log(2), abs=1e-12)


def test_a_dead_squeeze_does_not_cut_the_network() -> None:
    gm = captured("Depthwise")
    dead = {"squeeze.weight": torch.zeros_like(gm.get_parameter("squeeze.weight"))}
    assert float(linearised(gm, dead)) == float(linearised(gm, {}))
    cut = {"stem.0.weight": torch.zeros(4, 3, 3, 3)}
    assert float(linearised(gm, cut)) == -math.inf


def test_depth_does_not_overflow() -> None:
    model = nn.Sequential(*(nn.Linear(10, 10) for _ in range(200)))
    for weight in model.parameters():
        nn.init.constant_(weight, 100.0)
    gm = fp.capture(model, torch.randn(1, 10))
    weights = {name: weight.requires_grad_() for name, weight in absolute(gm).items()}
    total = linearised(gm, weights)
    assert total.item() == pytest.approx(200 * math.log(1000) + math.log(10), rel=1e-12)
    (slope,) = torch.autograd.grad(total, weights["0.weight"])
    assert (slope * weights["0.weight"]).sum().item() == pytest.approx(1.0, abs=1e-12)


class Counting(nn.Module):
    """Counts its calls, and adds up what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)
        self.calls, self.seen = nn.Buffer(torch.tensor(0)), nn.Buffer(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        self.seen.add_(x.mean(0))
        return self.map(x)


def test_the_network_stays_as_it_is() -> None:
    gm = fp.capture(Counting(), torch.randn(2, 3))
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    linearised(gm, {})
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: F.glu(x.expand(-1, 2)), "nothing linear is known to stand for it"),
        (lambda x: x.std(0), "nothing linear is known to stand for it"),
        (lambda x: torch.maximum(x, 2 * x), "of several signals it makes no sum, product or concatenation"),
        (lambda x: torch.view_as_real(torch.view_as_complex(x.expand(-1, 2).contiguous())), "complex numbers"),
        (lambda x: F.max_pool1d(x.t()[None], 2, 1, 0, 2)[0], "no mean is taken over dilated windows"),
    ],
)
def test_what_is_refused(function: object, message: str) -> None:
    gm = fp.capture(Function(function), torch.randn(4, 1), dynamic_shapes={"x": None})
    with pytest.raises(RewriteError, match=rf"no synaptic flow is defined through `\w+` \(aten.*{message}"):
        linearised(gm, {})


@pytest.mark.parametrize("name", ["WeightNormOfReader", "WeightStandardised"])
def test_a_weight_that_is_computed_is_refused(name: str) -> None:
    with pytest.raises(RewriteError, match=r"through `conv2d_1` .*: its weight is computed by `\w+` \(aten"):
        linearised(captured(name), {})
