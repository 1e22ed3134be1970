"""Networks with each normalisation, over channels or beside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.networks.examples import example, tokens


@example("conv.weight 8, read.weight 5", name="InstanceNorm", norm=lambda: nn.InstanceNorm2d(8, affine=True))
@example(
    "conv.weight 8, read.weight 5",
    name="InstanceNormTracked",
    norm=lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
)
@example(
    "conv.weight 8/2, read.weight 5", name="GroupNorm", norm=lambda: nn.GroupNorm(2, 8)
)  # equally many in each group
@example("conv.weight 8, read.weight 5", name="GroupNormOfOne", norm=lambda: nn.GroupNorm(1, 8))
@example(
    "conv.weight 8, read.weight 5", name="GroupNormOfEach", norm=lambda: nn.GroupNorm(8, 8)
)  # the number of groups shrinks
@example("conv.weight 8, read.weight 5", name="PReLU", norm=lambda: nn.PReLU(8))
@example("conv.weight 8, read.weight 5", name="PReLUOfOne", norm=lambda: nn.PReLU())
class Normalised(nn.Module):
    """A normalisation between two convolutions."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.read = nn.Conv2d(3, 8, 3, padding=1), norm(), nn.Conv2d(8, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(F.relu(self.norm(self.conv(x))))).mean((2, 3)))


@example("embed.weight 6, up.weight 7", tokens, name="LayerNorm", norm=lambda: nn.LayerNorm(6))
@example(
    "embed.weight 6, up.weight 7", tokens, name="LayerNormPlain", norm=lambda: nn.LayerNorm(6, elementwise_affine=False)
)
@example("embed.weight 6, up.weight 7", tokens, name="RMSNorm", norm=lambda: nn.RMSNorm(6))
class NormalisedTokens(nn.Module):
    """A normalisation of tokens over their features, in a residual block."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 6), norm()
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class RootMeanSquare(nn.Module):
    """RMSNorm as language models write it: a mean over channels, which is exact with the original's width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


example("embed.weight 6, up.weight 7", tokens, name="RMSNormByHand", norm=lambda: RootMeanSquare(6))(NormalisedTokens)


# A removed channel is the constant -mean there, so that neither the mean of squares nor what follows is exact.
@example("up.weight 7", tokens, held={"embed.weight[0]": "mean"})
class LayerNormByHand(nn.Module):
    """x less its mean, over its standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return self.head(F.gelu(self.up(x)).mean(1))


# A filter of zeros has no direction, so that the filters stay; what a filter reads is in its norm, so that stays too.
@example(
    "read.weight 5",
    name="WeightNormOfProducer",
    reader=False,
    held={"conv.parametrizations.weight.original1[0]": "_weight_norm"},
)
@example("", name="WeightNormOfReader", reader=True, held={"conv.weight[0]": ".", "read.bias[0]": "."})
class WeightNorm(nn.Module):
    """Filters as a direction and a length, before or behind plain ones."""

    def __init__(self, reader: bool) -> None:
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        parametrizations.weight_norm(self.read if reader else self.conv)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(F.relu(self.conv(x)))).mean((2, 3)))


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters have mean zero and variance one."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the parent's name)
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


# A filter may leave, but none of the channels that a standardised filter reads.
@example("last.weight 5", held={"conv.weight[0]": "", "last.weight[1]": ""})
class WeightStandardised(nn.Module):
    """Two standardised convolutions in a row: the first one's filters are read by the second's statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3, padding=1), StandardisedConv(6, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.conv(x)))).mean((2, 3)))


# The mean over channels is a sum over the original's width; the largest one would change, so "max" is held.
@example("conv.weight 8, gate.weight 4, read.weight 5", name="SpatialAttentionByMean", largest=False)
@example(
    "gate.weight 4, read.weight 5",
    name="SpatialAttentionByMax",
    largest=True,
    held={"conv.weight[0]": "max"},
)
class SpatialAttention(nn.Module):
    """A map of where to look, from statistics over the channels."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(1, 4, 3, padding=1)
        self.mask, self.read, self.head = nn.Conv2d(4, 1, 1), nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        seen = x.amax(1, keepdim=True) if self.largest else x.mean(1, keepdim=True)
        x = x * torch.sigmoid(self.mask(F.relu(self.gate(seen))))
        return self.head(F.relu(self.read(x)).mean((2, 3)))
