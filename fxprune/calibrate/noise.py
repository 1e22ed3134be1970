"""What inputs look like before anything is known of them: noise with the spectrum of natural images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxprune.calls import concrete_shape

FALL, LOWEST = 1.5, 0.5  # amplitudes f^-1.5; the constant counts as half a wave over the image: found by measurement
MIXED = 64  # most channels that are mixed with one another: images have three, a flat vector of features thousands
EMBEDDING = torch.ops.aten.embedding.default


class Source(ABC):
    """Makes values for one input of a graph out of coefficients.

    parameters: what the model of the input's statistics has to fit; empty where there is none.
    """

    parameters: tuple[Tensor, ...] = ()

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Coefficients for `count` images."""

    @abstractmethod
    def value(self, coefficients: Tensor) -> Tensor:
        """The input that the coefficients stand for, with the dtype that the graph expects."""


class Noise(Source):
    """Fourier coefficients of independent smooth fields, mixed over the channels and shifted: a floating-point input.

    An input of four or more dimensions [images, channels, *space] is smooth along its space; any other is white.
    gain [channels, channels], or [channels] where there are many; shift [channels]: from the example input until they
    are fitted. scale: of both.
    """

    def __init__(self, example: Tensor) -> None:
        self.shape, self.dtype, self.device = example.shape[1:], example.dtype, example.device
        self.scale = 1.0
        rows = example.detach().float().reshape(len(example), self._channels, -1).movedim(1, 0).flatten(1)
        deviation = rows.std(1, correction=0)
        self.gain = self._gain(torch.where(deviation > 0, deviation, 1.0))
        self.shift = rows.mean(1)
        self._space = tuple(range(2, example.ndim)) if example.ndim > 3 else ()
        self._filter = _falling(self.shape[1:], FALL).to(self.device) if self._space else None

    @property
    def _channels(self) -> int:
        return self.shape[0] if self.shape else 1

    def _gain(self, deviations: Tensor) -> Tensor:
        """The gain that gives independent channels these deviations."""
        return deviations.diag() if len(deviations) <= MIXED else deviations

    def reset(self, scale: float) -> None:
        """Forget the example: independent channels about zero, of deviation `scale`, ready to be fitted."""
        self.scale = scale
        self.gain = self._gain(torch.ones(self._channels, device=self.device))
        self.shift = torch.zeros(self._channels, device=self.device)
        self.parameters = (self.gain, self.shift)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent normal numbers."""
        return torch.randn(count, *self.shape, generator=generator).to(self.device)

    def value(self, coefficients: Tensor) -> Tensor:
        """The inverse Hartley transform of the coefficients under the filter, mixed and shifted."""
        fields = coefficients
        if self._filter is not None:
            waves = torch.fft.fftn(coefficients * self._filter, dim=self._space, norm="ortho")
            fields = waves.real - waves.imag
        flat = fields.reshape(len(fields), self._channels, -1)
        mixed = self.gain @ flat if self.gain.ndim == 2 else self.gain[:, None] * flat
        return (self.scale * (mixed + self.shift[:, None])).reshape(coefficients.shape).to(self.dtype)


class Ids(Source):
    """Whole numbers below `limit`, uniformly: the input of an embedding.

    readers: the embeddings that look up rows by them; `limit` is the least number of rows.
    """

    def __init__(self, example: Tensor, readers: Sequence[fx.Node]) -> None:
        self.example, self.readers = example, readers
        self.limit = min(map(rows_of, readers))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The numbers themselves."""
        shape = (count, *self.example.shape[1:])
        return torch.randint(self.limit, shape, generator=generator).to(self.example)

    def value(self, coefficients: Tensor) -> Tensor:
        """The numbers themselves."""
        return coefficients


class Repeated(Source):
    """The example over and over: an input of which nothing else is known, such as a mask."""

    def __init__(self, example: Tensor) -> None:
        self.example = example

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of the example."""
        return self.example[torch.arange(count, device=self.example.device) % len(self.example)]

    def value(self, coefficients: Tensor) -> Tensor:
        """The rows themselves."""
        return coefficients


def source_for(node: fx.Node, example: Tensor) -> Source:
    """The source for a placeholder, given the example input that the graph was captured with."""
    if example.is_floating_point():
        return Noise(example)
    readers = _readers(node)
    return Ids(example, readers) if readers else Repeated(example)


def rows_of(embedding: fx.Node) -> int:
    """How many rows an embedding has."""
    return concrete_shape(embedding.all_input_nodes[0])[0]


def _readers(node: fx.Node) -> list[fx.Node]:
    """The embeddings that look up rows by what is made of `node` alone."""
    found = []
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if user.target is EMBEDDING:
            found.append(user)
        elif len(user.all_input_nodes) == 1 and _is_whole(user):
            stack += user.users
    return found


def _is_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point()


def _falling(space: tuple[int, ...], fall: float) -> Tensor:
    """Amplitudes f^-fall over the frequencies f of a space, in waves over its extent, with mean square 1."""
    squared = torch.zeros(())
    for size in space:
        squared = squared[..., None] + (torch.fft.fftfreq(size) * size).square()
    amplitudes: Tensor = squared.sqrt().clamp_min(LOWEST).pow(-fall)
    return amplitudes / amplitudes.square().mean().sqrt()
