"""Networks with each kind of layer: convolutions of every rank, transposed, grouped, shared, by function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.examples import example, images, words


@example("conv.weight 8, up.weight 6")
class Transposed(nn.Module):
    """A transposed convolution, whose weight has its input first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 2, 2)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.up(F.relu(self.conv(x))))).mean((2, 3)))


# Both sides of a grouped one keep equally many in each of its two groups; depthwise, both sides are the same units.
@example("conv.weight 8/2, up.weight 6/2, narrow.weight 4")
class TransposedGrouped(nn.Module):
    """A transposed convolution of two groups, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.wide, self.head = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(F.relu(self.up(F.relu(self.conv(x)))))
        return self.head(F.relu(self.wide(x)).mean((2, 3)))


def waves(batch: int) -> tuple[Tensor, ...]:
    """Signals of three channels and twelve steps."""
    return (torch.randn(batch, 3, 12, generator=torch.Generator().manual_seed(0)),)


def films(batch: int) -> tuple[Tensor, ...]:
    """Films of three channels, four frames of six by six."""
    return (torch.randn(batch, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0)),)


@example("conv.weight 6/2, grouped.weight 4/2, up.weight 5", waves)
class OneDimensional(nn.Module):
    """Convolutions of signals."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 6, 3, padding="same"), nn.BatchNorm1d(6)
        self.grouped, self.up = nn.Conv1d(6, 4, 3, padding=1, groups=2), nn.ConvTranspose1d(4, 5, 2, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.conv(x))), 2)
        x = F.relu(self.up(F.relu(self.grouped(x))))
        return self.head(F.adaptive_avg_pool1d(x, 1).flatten(1))


# The depthwise convolution of the (2 + 1)-d block joins its two sides.
@example("conv.weight 6, spatial.weight 5, temporal.weight 4", films)
class ThreeDimensional(nn.Module):
    """Convolutions of films, apart in space and time, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.depth = nn.Conv3d(6, 6, 3, padding=1, groups=6)
        self.spatial, self.temporal = nn.Conv3d(6, 5, (1, 3, 3)), nn.Conv3d(5, 4, (3, 1, 1))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.depth(F.relu(self.norm(self.conv(x))))), (1, 2, 2))
        x = F.max_pool3d(F.relu(self.spatial(F.pad(x, (1, 1, 1, 1, 0, 0)))), (1, 2, 2))
        return self.head(F.relu(self.temporal(x)).mean((2, 3, 4)))


@example("kernel 6, weight 5")
class Functional(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(6, 3, 3, 3) / 5), nn.Parameter(torch.randn(6))
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6) / 2), nn.Parameter(torch.randn(5))
        self.last = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, self.shift, padding=1)).mean((2, 3))
        return F.relu(F.linear(x, self.weight, self.bias)) @ self.last


# The trunk goes through one block twice; the block's inner channels are its own.
@example("conv.weight 4, inner.weight 6")
class CalledTwice(nn.Module):
    """A residual block that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.outer, self.head = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 3)

    def block(self, x: Tensor) -> Tensor:
        return F.relu(x + self.outer(F.relu(self.inner(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.conv(x))).mean((2, 3)))


# What the encoder reads is what the decoder makes: the trunk. The units of the code are their own.
@example("conv.weight 6, encode.weight 4")
class TiedTransposed(nn.Module):
    """An encoder whose transposed weight decodes, in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.encode, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.head(x + F.linear(torch.tanh(self.encode(x)), self.encode.weight.t()))


# Word vectors are made by the embedding and read by the same weight at the end; the vocabulary is an output.
@example("words.weight 6, up.weight 7", words, held={"words.weight[0]": "."})
class WordVectors(nn.Module):
    """An embedding tied with the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 7), nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x)
        return F.linear(x + self.down(F.gelu(self.up(x))), self.words.weight)


@example("words.weight 6, hidden.weight 5", words)
class Lookups(nn.Module):
    """Two embeddings that are added: words by the input, places by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6, padding_idx=0), nn.Embedding(6, 6)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places(self.order)
        return self.head(F.relu(self.hidden(x.mean(1))))


# Tokens are pixels of the input and stay; what the tokens are mixed through, and the channels, may go.
@example("stem.weight 6, up_tokens.weight 5, up.weight 7")
class Mixer(nn.Module):
    """MLP-Mixer: one layer mixes tokens, one channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6)
        self.up_tokens, self.down_tokens = nn.Linear(16, 5), nn.Linear(5, 16)
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        mixed = self.down_tokens(F.gelu(self.up_tokens(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + mixed
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@example("left.weight 4, right.weight 5, form.weight 6")
class Bilinear(nn.Module):
    """A bilinear layer between two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.form = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Bilinear(4, 5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.left(x)).mean((2, 3)), F.relu(self.right(x)).mean((2, 3))
        return self.head(F.relu(self.form(left, right)))


@example("conv.weight 4, hidden.weight 5", lambda batch: (images(batch, 4),))
class Flattened(nn.Module):
    """Pixels flattened with the channels first and with the channels last, both of which a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 5), nn.Linear(64, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(F.relu(self.hidden(x.flatten(1)) + self.last(x.permute(0, 2, 3, 1).flatten(1))))
