"""The register of examples: a network, what it takes, and the groups that theory gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Inputs = Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Example:
    """A network with the coupling that was worked out for it by hand.

    build: makes the network.
    inputs: from a batch size to its arguments.
    groups: `name width/blocks` of every group, in order.
    heads: the same where whole heads are the units; None where there is no attention.
    held: for axes that are held for a reason of their own, a regular expression of that reason.
    """

    build: Callable[[], nn.Module]
    inputs: Inputs
    groups: str
    heads: str | None = None
    held: Mapping[str, str] = field(default_factory=dict)


EXAMPLES: dict[str, Example] = {}


def images(batch: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pixels(batch: int) -> tuple[Tensor, ...]:
    """Images."""
    return (images(batch),)


def tokens(batch: int) -> tuple[Tensor, ...]:
    """Six tokens of five features."""
    return (torch.randn(batch, 6, 5, generator=torch.Generator().manual_seed(0)),)


def words(batch: int) -> tuple[Tensor, ...]:
    """Six words of a vocabulary of eleven."""
    return (torch.randint(0, 11, (batch, 6), generator=torch.Generator().manual_seed(0)),)


def example(
    groups: str,
    inputs: Inputs = pixels,
    heads: str | None = None,
    held: Mapping[str, str] | None = None,
    name: str | None = None,
    **options: object,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a class under its name, or under `name` with other options of its constructor."""

    def register(network: type[nn.Module]) -> type[nn.Module]:
        EXAMPLES[name or network.__name__] = Example(lambda: network(**options), inputs, groups, heads, held or {})
        return network

    return register
