"""Steps from images to images that drawn networks are put together from.

Each is a module that knows its number of output channels, and that says in `couple` what it does to the labels of the
channels: the coupling as a person would work it out. Channels are a multiple of four, at least four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.networks.partition import Labels, Partition

BY_GROUP = -1  # in place of an axis: the inputs of a grouped convolution, which are not along one axis of its weight
STEPS: dict[str, type[Step]] = {}


class Step(nn.Module):
    """One step of a drawn network.

    width: how many channels it returns.
    zero: whether a channel whose slices are zero is zero in what it returns; None where that is as before.
    """

    width: int
    zero: bool | None = True
    name: str

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        """The labels of what is returned."""
        raise NotImplementedError

    # what steps say of their layers ----------------------------------------------------------------------------------

    def made_by(self, found: Partition, layer: str, labels: Labels | None = None) -> Labels:
        """A layer makes channels: new ones, or `labels`."""
        module = self.get_submodule(layer)
        weight = module.weight
        assert isinstance(weight, Tensor)
        labels = found.fresh(len(weight)) if labels is None else labels
        return found.make(self.param(layer), labels)

    def read_by(self, found: Partition, layer: str, labels: Labels) -> None:
        """A layer reads channels."""
        found.lie(self.param(layer), labels, 1)

    def param(self, layer: str) -> str:
        return f"{self.name}.{layer}.weight"

    def through(self, found: Partition, layer: str, x: Labels, y: Labels | None = None) -> Labels:
        """A layer reads `x` and makes new channels, or `y`."""
        self.read_by(found, layer, x)
        return self.made_by(found, layer, y)


def step(*options: Any) -> Callable[[type[Step]], type[Step]]:
    """Register a step with the options that it is drawn with."""

    def register(made: type[Step]) -> type[Step]:
        STEPS[made.__name__] = made
        OPTIONS[made.__name__] = options or (None,)
        return made

    return register


OPTIONS: dict[str, tuple[Any, ...]] = {}


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
