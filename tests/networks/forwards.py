"""Forwards of every form: several inputs and outputs, dicts and dataclasses, in-place spellings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.nn import functional as F

from tests.networks.examples import example, images


def image_and_features(batch: int) -> tuple[Tensor, ...]:
    """An image and four features beside it."""
    return images(batch), torch.randn(batch, 4, generator=torch.Generator().manual_seed(1))


# The sum joins what the image and the features become.
@example(
    "image.weight 6, both.weight 5", image_and_features, held={"mean.weight[0]": "output", "spread.weight[0]": "output"}
)
class SeveralInputs(nn.Module):
    """Two inputs that meet, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.features, self.both = nn.Conv2d(3, 6, 3), nn.Linear(4, 6), nn.Linear(6, 5)
        self.mean, self.spread = nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, image: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.both(F.relu(self.image(image)).mean((2, 3)) + self.features(features)))
        return self.mean(x), self.spread(x).exp()


# What is returned stays, and so does what it is added to.
@example("inner.weight 6", held={"stem.weight[0]": "output", "outer.weight[0]": "output"})
class DictOfFeatures(nn.Module):
    """A dict with a list in it, as detection backbones return."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.outer, self.head = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        x = F.relu(self.stem(x))
        y = x + self.outer(F.relu(self.inner(x)))
        return {"features": [x, y], "logits": self.head(y.mean((2, 3)))}


@dataclass
class Answer:
    """What a language model returns."""

    logits: Tensor
    hidden: Tensor | None = None


register_dataclass(Answer, serialized_type_name="tests.networks.Answer")


@example("conv.weight 6")
class ReturnsDataclass(nn.Module):
    """A dataclass with a field that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.head(F.relu(self.conv(x)).mean((2, 3))))


@example("stem.weight 4, inner.weight 6")
class InPlace(nn.Module):
    """Every op that has an in-place spelling, in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x)).clamp_(max=3)
        y = self.outer(F.hardswish(self.inner(x), inplace=True)).mul_(0.5)
        y += x
        y.sub_(x.square(), alpha=0.1)
        return self.head(y.relu_().mean((2, 3)))


# A position that is written to leaves together with what is written.
@example("stem.weight#1 2, stem.weight#2 4")
class WrittenSlice(nn.Module):
    """A slice that is written into."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y[:, :2] = self.left(x)
        return self.head(F.relu(y).mean((2, 3)))


# The branches are joined at the sum; the concatenation keeps its parts apart.
@example("first.weight 4, third.weight 3")
class Branches(nn.Module):
    """Branches that are added, then set beside another, with the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = F.relu(self.first(x) + self.second(x).sigmoid() * 2)
        return self.head(torch.cat([x, both, self.third(x)], 1).mean((2, 3)))


# A buffer along the channels leaves with them, and one that is a mask too.
@example("conv.weight 6, read.weight 5")
class BuffersAlongChannels(nn.Module):
    """Constants for every channel: a mean, a mask, and a table beside the image."""

    mean: Tensor
    mask: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.read, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)
        self.register_buffer("mean", torch.randn(6, 1, 1))
        self.register_buffer("mask", torch.tensor([True, False, True, True, True, False]).view(1, 6, 1, 1))
        self.register_buffer("table", torch.randn(6, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(self.mask, self.conv(x) - self.mean, self.table)
        return self.head(F.relu(self.read(F.relu(x))).mean((2, 3)))
