"""SynExp: invariance to the granularity of masks, the expressions, and their agreement with runs on numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import sympy
import torch
import torchvision
from torch import Tensor, fx, nn

import fxprune as fp
from fxprune.errors import PlanError, RewriteError
from fxprune.widths.synexp import expected_synflow, synexp, synflow
from tests.networks import captured

# What is drawn together: single weights, kernels, filters, or the weights that read one channel.
GRANULARITIES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "weights": lambda shape: shape,
    "kernels": lambda shape: (*shape[:2], *[1] * (len(shape) - 2)),
    "filters": lambda shape: (shape[0], *[1] * (len(shape) - 1)),
    "channels": lambda shape: (1, shape[1], *[1] * (len(shape) - 2)),
}
SAMPLES = 150


def random_mask(shape: tuple[int, ...], density: float) -> Tensor:
    """A mask with a fixed number of ones, all places alike; where there is but one place, ones."""
    count = math.prod(shape)
    kept = max(1, round(density * count))
    return (torch.randperm(count) < kept).reshape(shape).double()


def drawn_together(gm: fx.GraphModule, granularity: str) -> dict[str, tuple[int, ...]]:
    """The shape of the masks of each layer."""
    return {name: GRANULARITIES[granularity](tuple(gm.get_parameter(name).shape)) for name in synexp(gm).densities}


def random_masks(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A mask for each layer, of density 0.6 as far as its shape allows."""
    return {name: random_mask(shape, 0.6) for name, shape in shapes.items()}


def standard_score(scores: list[float], expected: float) -> float:
    """By how many standard errors the mean of scores is off what is expected; all are given by their logs."""
    ratios = torch.tensor([math.exp(score - expected) for score in scores], dtype=torch.float64)
    error = float(ratios.std()) / math.sqrt(len(ratios))
    assert error < 0.1, "too few samples to tell anything"
    return (float(ratios.mean()) - 1) / error


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["Plain", "Residual", "Dense", "Depthwise"])
def test_the_expectation_over_masks_depends_on_densities_alone(name: str, granularity: str) -> None:
    gm = captured(name)
    shapes = drawn_together(gm, granularity)
    drawn = [random_masks(shapes) for _ in range(SAMPLES)]
    densities = {layer: float(mask.mean()) for layer, mask in drawn[0].items()}
    scores = [synflow(gm, masks) for masks in drawn]
    assert abs(standard_score(scores, expected_synflow(gm, densities, over_weights=False))) < 3.5
    assert abs(standard_score(scores, expected_synflow(gm))) > 6  # it could have failed: these are other densities


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["Residual", "Dense"])
def test_the_expectation_over_weights_and_masks(name: str, granularity: str) -> None:
    # Shuffled weights are exchangeable: the expectation of each is the mean of its layer.
    gm = captured(name)
    shapes = drawn_together(gm, granularity)
    before = {layer: gm.get_parameter(layer).detach().clone() for layer in shapes}
    scores = []
    for _ in range(SAMPLES):
        masks = random_masks(shapes)
        with torch.no_grad():
            for layer, weight in before.items():
                gm.get_parameter(layer).copy_(weight.flatten()[torch.randperm(weight.numel())].reshape(weight.shape))
        scores.append(synflow(gm, masks))
    densities = {layer: float(mask.mean()) for layer, mask in masks.items()}
    assert abs(standard_score(scores, expected_synflow(gm, densities))) < 3.5


class Residual(nn.Module):
    """A block with an identity shortcut, and no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.outer(torch.relu(self.inner(x)))).mean((2, 3)))


class Dense(nn.Module):
    """A layer that adds channels to those that it reads, and no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([x, self.grow(torch.relu(x))], 1).mean((2, 3)))


class Kernels(nn.Module):
    """Every kind of convolution, where no padding is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, groups=4)
        self.grouped, self.up = nn.Conv2d(4, 8, 2, groups=2, dilation=2), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6 * 3 * 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.depthwise(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


UNPADDED = {"Residual": Residual, "Dense": Dense, "Kernels": Kernels}


def unpadded(name: str) -> fx.GraphModule:
    size = 15 if name == "Kernels" else 2
    return fp.capture(UNPADDED[name](), torch.randn(1, 3, size, size))


def random_densities(gm: fx.GraphModule) -> dict[str, float]:
    rng = random.Random(0)
    return {name: rng.uniform(0.1, 2.0) for name in synexp(gm).densities}


@pytest.mark.parametrize("name", UNPADDED)
def test_the_expression_is_the_number_where_nothing_is_padded(name: str) -> None:
    gm = unpadded(name)
    densities = random_densities(gm)
    assert synexp(gm).evaluate(densities) == pytest.approx(expected_synflow(gm, densities), abs=1e-10)


@pytest.mark.parametrize(
    "name",
    ["Attention", "LinearAttention", "FusedAttention", "ShiftedWindows", "Mixer", "Batched", "Experts", "WordVectors",
     "TiedTransposed", "Llama", "WrittenSlice", "ReturnsDataclass"],
)  # fmt: skip
def test_the_expression_is_the_number_in_networks_without_convolutions(name: str) -> None:
    gm = captured(name)
    densities = random_densities(gm)
    assert synexp(gm).evaluate(densities) == pytest.approx(expected_synflow(gm, densities), abs=1e-10)


def steps(gm: fx.GraphModule) -> str:
    return "\n".join(f"{symbol} = {expression}" for symbol, expression in synexp(gm).steps)


def test_paths_that_meet_in_an_addition_add_up() -> None:
    gm = unpadded("Residual")
    assert (
        steps(gm)
        == """\
x1 = 3*m_stem*p_stem
x2 = 4*m_inner*p_inner*x1
x3 = 6*m_outer*p_outer*x2
x4 = x1 + x3
x5 = 4*m_head*p_head*x4
S = 2*x5"""
    )
    assert (
        str(synexp(gm).expression)
        == "8*m_head*p_head*(72*m_inner*m_outer*m_stem*p_inner*p_outer*p_stem + 3*m_stem*p_stem)"
    )


def test_paths_that_meet_in_a_concatenation_count_by_their_shares() -> None:
    gm = unpadded("Dense")
    assert (
        steps(gm)
        == """\
x1 = 3*m_stem*p_stem
x2 = 4*m_grow*p_grow*x1
x3 = 2*x1/5 + 3*x2/5
x4 = 10*m_head*p_head*x3
S = 2*x4"""
    )
    assert str(synexp(gm).expression) == "20*m_head*p_head*(36*m_grow*m_stem*p_grow*p_stem/5 + 6*m_stem*p_stem/5)"


def test_the_score_of_a_path_is_the_product_of_the_paper() -> None:
    gm = captured("Plain")
    found = synexp(gm)
    fan_in = {"conv1.weight": 27, "conv2.weight": 54, "fc1.weight": 16, "fc2.weight": 5}
    path = [found.densities[name] * count * found.scales[name] for name, count in fan_in.items()]
    assert sympy.expand(found.expression - 3 * sympy.prod(path)) == 0
    means = {name: float(gm.get_parameter(name).detach().double().abs().mean()) for name in fan_in}
    assert found.means == means
    expected = math.log(3 * math.prod(fan_in[name] * means[name] for name in fan_in))
    assert found.evaluate() == pytest.approx(expected, abs=1e-12)
    assert found.gain({"conv1.weight": 0.5, "fc1.weight": 0.25}) == pytest.approx(math.log(0.125), abs=1e-12)


def test_a_shortcut_bridges_a_layer_without_weights() -> None:
    found = synexp(unpadded("Residual"))
    assert found.evaluate({"stem.weight": 0.0}) == -math.inf
    assert -math.inf < found.gain({"inner.weight": 0.0}) < 0


def test_a_layer_that_starts_from_zeros_has_a_gain() -> None:
    model = Dense()
    nn.init.zeros_(model.head.weight)
    found = synexp(fp.capture(model, torch.randn(1, 3, 2, 2)))
    assert found.evaluate() == -math.inf
    assert found.gain({"head.weight": 0.5}) == pytest.approx(math.log(0.5), abs=1e-12)


def test_tied_layers_count_as_often_as_they_are_called() -> None:
    found = synexp(captured("Tied"))
    assert list(found.densities) == ["stem.0.weight", "first.weight", "head.weight"]
    assert found.gain({"first.weight": 0.5}) == pytest.approx(2 * math.log(0.5), abs=1e-12)


def test_densely_connected_networks_do_not_blow_up() -> None:
    # The graph of DenseNet-121, narrower: written out, its score would have billions of terms.
    model = torchvision.models.DenseNet(growth_rate=2, block_config=(6, 12, 24, 16), num_init_features=4, num_classes=3)
    gm = fp.capture(model, torch.randn(1, 3, 32, 32))
    found = synexp(gm)
    assert len(found.densities) == 121
    densities = random_densities(gm)
    values = {found.scales[name]: mean for name, mean in found.means.items()}
    values |= {symbol: densities[name] for name, symbol in found.densities.items()}
    for symbol, expression in found.steps:
        values[symbol] = float(expression.xreplace(values))
    assert found.evaluate(densities) == pytest.approx(math.log(values[found.steps[-1][0]]), rel=1e-12)


def test_densities_that_are_none() -> None:
    found = synexp(unpadded("Dense"))
    with pytest.raises(PlanError, match="'stem.bias' is no layer that the synaptic flow passes"):
        found.evaluate({"stem.bias": 0.5})
    for density in (-0.5, math.nan, math.inf):
        with pytest.raises(PlanError, match="is no density of 'stem.weight': it must be a number from 0 on"):
            found.gain({"stem.weight": density})


@pytest.mark.parametrize(
    ("name", "node"), [("LSTM", "lstm"), ("Bilinear", "bilinear"), ("CosineAttention", "linalg_vector_norm")]
)
def test_what_is_refused(name: str, node: str) -> None:
    with pytest.raises(RewriteError, match=f"no synaptic flow is defined through `{node}` "):
        synexp(captured(name))
