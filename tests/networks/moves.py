"""Networks that only rearrange channels between two convolutions, each in its own way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.classifiers import conv_norm
from tests.networks.examples import example


class Moved(nn.Module):
    """A convolution, a move of its channels, a convolution that reads them, a head."""

    def __init__(self, made: int, read: int) -> None:
        super().__init__()
        self.conv, self.read, self.head = conv_norm(3, made), nn.Conv2d(read, 5, 3, padding=1), nn.Linear(5, 3)

    def move(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(self.move(F.relu(self.conv(x))))).mean((2, 3)))


Move = Callable[[Tensor], Tensor]


def moved(name: str, groups: str, made: int, read: int) -> Callable[[Move], Move]:
    """Register a move as a network of its own; `groups` without the last, which is the same in all."""

    def register(move: Move) -> Move:
        class Network(Moved):
            def __init__(self) -> None:
                super().__init__(made, read)

            def move(self, x: Tensor) -> Tensor:
                return move(x)

        example(f"{groups}, read.weight 5", name=name)(Network)
        return move

    return register


# Halves that nothing joins stay apart; one layer reads both, so that they are one group.
@moved("Chunked", "conv.0.weight 8", 8, 8)
def chunked(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, torch.tanh(a)], 1)


@moved("SplitUnequal", "conv.0.weight#1 4, conv.0.weight#2 2", 10, 6)
def split_unequal(x: Tensor) -> Tensor:
    """4, 4 and 2 channels: the first two gate each other."""
    a, b, c = x.split(4, 1)
    return torch.cat([c, a * b], 1)


@moved("SplitSizes", "conv.0.weight 7", 7, 7)
def split_sizes(x: Tensor) -> Tensor:
    a, b = torch.split(x, [2, 5], 1)
    return torch.cat([b, a], 1)


# The middle three gate the first three; the last two go by themselves.
@moved("Sliced", "conv.0.weight#1 3, conv.0.weight#2 2", 8, 5)
def sliced(x: Tensor) -> Tensor:
    return torch.cat([x[:, :3] * x[:, 3:-2], x[:, -2:]], 1)


# Position i meets i + 3 and so i + 6: three units of three channels, two of which each slice shows.
@moved("Overlapping", "conv.0.weight 3", 9, 6)
def overlapping(x: Tensor) -> Tensor:
    return x[:, :6] + x[:, 3:]


# A pair of neighbours rotates as one.
@moved("Strided", "conv.0.weight 4", 8, 4)
def strided(x: Tensor) -> Tensor:
    return x[:, ::2] * x[:, 1::2]


@moved("Narrowed", "conv.0.weight#1 2, conv.0.weight#2 4", 8, 6)
def narrowed(x: Tensor) -> Tensor:
    """The outer pairs are added, what lies between passes."""
    return torch.cat([x.narrow(1, 2, 4), x.narrow(1, 0, 2) + x.narrow(1, 6, 2)], 1)


# view makes two rows, which keep equally many: one family of two blocks.
@moved("Unbound", "conv.0.weight 8/2", 8, 8)
def unbound(x: Tensor) -> Tensor:
    a, b = x.unflatten(1, (2, 4)).unbind(1)
    return torch.cat([torch.sigmoid(b), a], 1)


# The stack has two rows; flattening it is a concatenation again.
@moved("Stacked", "conv.0.weight 8/2", 8, 8)
def stacked(x: Tensor) -> Tensor:
    return torch.stack([x[:, 4:], x[:, :4].neg()], 1).flatten(1, 2)


# Channel 2 is read by its number and stays; the others may go.
@moved("Selected", "conv.0.weight 5", 6, 6)
def selected(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x[:, 2]).unsqueeze(1)


@moved("Rolled", "conv.0.weight 6", 6, 6)
def rolled(x: Tensor) -> Tensor:
    return torch.roll(x, 2, 1)


# i meets i - 2 of six: the even and the odd channels are a unit each.
@moved("RolledOnto", "conv.0.weight 2", 6, 6)
def rolled_onto(x: Tensor) -> Tensor:
    return x + torch.roll(x, 2, 1)


@moved("Flipped", "conv.0.weight 6", 6, 6)
def flipped(x: Tensor) -> Tensor:
    return x.flip(1)


# i meets 5 - i.
@moved("FlippedOnto", "conv.0.weight 3", 6, 6)
def flipped_onto(x: Tensor) -> Tensor:
    return x * x.flip(1)


@moved("PaddedConstant", "conv.0.weight 6", 6, 9)
def padded_constant(x: Tensor) -> Tensor:
    """Constants that nothing is added to are permanent."""
    return F.pad(x, (0, 0, 0, 0, 1, 2), value=0.5)


@moved("Tiled", "conv.0.weight 4", 4, 8)
def tiled(x: Tensor) -> Tensor:
    return x.tile((1, 2, 1, 1))


@moved("Repeated", "conv.0.weight 4", 4, 12)
def repeated(x: Tensor) -> Tensor:
    return x.repeat(1, 3, 1, 1)


@moved("Interleaved", "conv.0.weight 4", 4, 8)
def interleaved(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=1)


# Channel 3 i + j of four groups of three becomes position 4 j + i: what shares j leaves together.
@moved("Shuffled", "conv.0.weight 3", 12, 12)
def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)


@moved("ShuffledByOp", "conv.0.weight 4", 8, 8)
def shuffled_by_op(x: Tensor) -> Tensor:
    return F.channel_shuffle(x, 2)


# Four channels of the sub-pixels of one output channel leave together.
@moved("PixelShuffled", "conv.0.weight 3", 12, 3)
def pixel_shuffled(x: Tensor) -> Tensor:
    return F.pixel_shuffle(x, 2)


@moved("PixelShuffledByHand", "conv.0.weight 3", 12, 3)
def pixel_shuffled_by_hand(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return rows.reshape(batch, channels // 4, 2 * height, 2 * width)


@moved("PixelUnshuffled", "conv.0.weight 3", 3, 12)
def pixel_unshuffled(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, 2)


@moved("PixelUnshuffledByHand", "conv.0.weight 3", 3, 12)
def pixel_unshuffled_by_hand(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return rows.reshape(batch, channels * 4, height // 2, width // 2)


# The two pieces of an output channel leave together.
@moved("Maxout", "conv.0.weight 4", 8, 4)
def maxout(x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 2)).amax(2)


@moved("MaxoutOfHalves", "conv.0.weight 4", 8, 4)
def maxout_of_halves(x: Tensor) -> Tensor:
    return torch.maximum(*x.chunk(2, 1))


@moved("MaxoutWithIndices", "conv.0.weight 4", 8, 4)
def maxout_with_indices(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 4)).max(dim=1).values


@moved("Gated", "conv.0.weight 4", 8, 4)
def gated(x: Tensor) -> Tensor:
    return F.glu(x, dim=1)


@moved("Resized", "conv.0.weight 4", 4, 4)
def resized(x: Tensor) -> Tensor:
    x = F.interpolate(F.adaptive_avg_pool2d(x, (3, 5)), scale_factor=2.0, mode="nearest")
    return F.adaptive_max_pool2d(F.interpolate(x, size=(7, 7), mode="bilinear"), 4)


# Unit c is nine rows of the unfolded image.
@moved("Unfolded", "conv.0.weight 4", 4, 36)
def unfolded(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])
