"""What a method that sets widths before training is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn

from fxprune.closed_form.convex import Solution
from fxprune.cost import Cost
from fxprune.types import Coupling
from fxprune.widths.layers import Layer

GROWTH = 16  # how many times its width a group may become at most, where groups may grow
SLACK = 0.02  # of its density: what a layer may lose, on average, for widths nearer to the original's


@dataclass(frozen=True, eq=False)
class Setting:
    """A network before its training, and what its widths must keep to.

    gm: the captured graph; its weights are those of the initialisation.
    layers: the weights that the objective runs over.
    limits: on the costs, absolute, by the name of the cost.
    least, most: the bounds on the width of each group; equal where it must stay as it is.
    slack: the share of its density that a layer may lose, on average, for widths nearer to the original's.
    model: the network as the user gave it, where that is a module: gradients are taken through its training mode.
    data: inputs and labels, for the methods that look at a loss.
    """

    gm: fx.GraphModule
    coupling: Coupling
    cost: Cost
    layers: tuple[Layer, ...]
    limits: Mapping[str, float]
    least: Mapping[str, float]
    most: Mapping[str, float]
    slack: float = 0.0
    model: nn.Module | None = None
    data: tuple[Any, Any] | None = None
    seed: int = 0

    @property
    def dense(self) -> Mapping[str, int]:
        """The widths of the original."""
        return self.cost.widths

    def spent(self, widths: Mapping[str, float]) -> dict[str, float]:
        """What the network costs at these widths, which need not be whole; groups that are left out are whole."""
        return self.cost.at(widths, tuple(self.limits))

    def fits(self, widths: Mapping[str, float]) -> bool:
        """Whether all limits hold."""
        rounding = 1 + 1e-12  # of floating point
        return all(count <= self.limits[kind] * rounding for kind, count in self.spent(widths).items())


class Choice(NamedTuple):
    """What a method gives back.

    widths: of each group, within the bounds and the limits; they need not be whole.
    order: the units of each group, those first that leave first; where there is none, any will do.
    optimum: of the convex program over the widths, where the method has solved it.
    """

    widths: Mapping[str, float]
    order: Mapping[str, tuple[int, ...]] = {}
    optimum: Solution | None = None


Method = Callable[[Setting], Choice]
METHODS: dict[str, Method] = {}


def method(function: Method) -> Method:
    """Register a method under the name of its function."""
    METHODS[function.__name__] = function
    return function


def largest(setting: Setting, family: Callable[[float], Mapping[str, float]], low: float, high: float) -> float:
    """The largest number between `low`, where the widths of `family` fit, and `high`, at which they still do.

    family: widths that grow with the number.
    """
    if setting.fits(family(high)):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if setting.fits(family(middle)) else (low, middle)
    return low
