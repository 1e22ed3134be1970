"""The same density in every layer, as single weights, as filters and as channels: a test of the paper's claim.

"Structured Pruning of CNNs at Initialization" (arXiv 2203.02549) says that the accuracy depends on the densities alone.
Its channels are those that both sides of a layer lose; with the kept shares below the densities are the optimal ones of
a whole layer for ResNet-20, and the same products of kept rows and kept columns at every granularity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

# By the budget: the channels that stay of the 16, 32 and 64 of a stage, between its blocks and within them.
KEPT = {
    "params=0.5": ((16, 16), (32, 32), (32, 40)),
    "params=0.25": ((16, 16), (16, 30), (16, 31)),
}
USUAL = "params=0.5"  # the one that is always trained


class Channels(NamedTuple):
    """Which channels of a convolution's output and input stay: two vectors of 0 and 1."""

    outputs: Tensor
    inputs: Tensor

    @property
    def density(self) -> Fraction:
        """The share of the weights that stay."""
        return Fraction(int(self.outputs.sum() * self.inputs.sum()), len(self.outputs) * len(self.inputs))


Granularity = Callable[[Channels, tuple[int, ...], torch.Generator], Tensor]


def weights(channels: Channels, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Single weights at the density of these channels, at random."""
    return _subset(channels.density, shape, generator)


def filters(channels: Channels, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole kernels, one for each pair of channels, at the density of these channels, at random."""
    return _subset(channels.density, shape[:2], generator)[:, :, None, None].expand(shape)


def whole_channels(channels: Channels, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """All weights between two channels that stay."""
    return torch.outer(channels.outputs, channels.inputs)[:, :, None, None].expand(shape)


GRANULARITIES: dict[str, Granularity] = {
    "mask-weights": weights,
    "mask-filters": filters,
    "mask-channels": whole_channels,
}


def mask(model: nn.Module, granularity: str, budget: str, seed: int) -> int:
    """Fix weights of a ResNet-20's blocks at zero, in place, for all of the training; how many parameters are left."""
    generator = torch.Generator().manual_seed(seed)
    dead = 0
    for layer, channels in convolutions(model, KEPT[budget], generator):
        kept = GRANULARITIES[granularity](channels, tuple(layer.weight.shape), generator)
        prune.custom_from_mask(layer, "weight", kept)
        dead += int((kept == 0).sum())
    return sum(parameter.numel() for parameter in model.parameters()) - dead


def convolutions(
    model: nn.Module, kept: tuple[tuple[int, int], ...], generator: torch.Generator
) -> Iterator[tuple[nn.Conv2d, Channels]]:
    """Every convolution of the blocks with the channels that stay, drawn at random: `kept` of each stage."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    stream = torch.ones(16)
    for stage, (between, within) in enumerate(kept, 1):
        names = [name for name in layers if name.startswith(f"layer{stage}.")]
        width = layers[names[0]].out_channels
        outputs = _subset(Fraction(between, width), (width,), generator)
        for first, second in zip(names[::2], names[1::2], strict=True):
            inner = _subset(Fraction(within, width), (width,), generator)
            yield layers[first], Channels(inner, stream)
            yield layers[second], Channels(outputs, inner)
            stream = outputs


def _subset(share: Fraction, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Ones at a share of the places, zeros elsewhere."""
    places = torch.zeros(shape)
    chosen = torch.randperm(places.numel(), generator=generator)[: round(share * places.numel())]
    places.view(-1)[chosen] = 1
    return places
