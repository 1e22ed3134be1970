"""Steps from images to images that drawn networks are put together from.

Each is a module that knows its number of output channels, and that says in `couple` what it does to the labels of the
channels: the coupling as a person would work it out. Channels are a multiple of four, at least four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.partition import PERMANENT, Labels, Partition

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


@step((4, 1), (8, 1), (8, 2), (12, 4), (12, 1))
class Conv(Step):
    """A convolution, maybe of groups."""

    def __init__(self, channels: int, option: tuple[int, int]) -> None:
        super().__init__()
        self.width, self.groups = option
        self.conv = conv(channels, self.width, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        if self.groups == len(x):  # depthwise
            found.doubtful += x
            return self.made_by(found, "conv", [label for label in x for _ in range(self.width // self.groups)])
        made = self.made_by(found, "conv")
        if self.groups == 1:
            self.read_by(found, "conv", x)
        else:
            found.lie(self.param("conv"), x, BY_GROUP)
            found.lay(x, self.groups)
            found.lay(made, self.groups)
        return made


@step((4, 1), (8, 2), (8, 1))
class Transposed(Step):
    """A transposed convolution and a pooling back; its weight has the inputs first."""

    def __init__(self, channels: int, option: tuple[int, int]) -> None:
        super().__init__()
        self.width, self.groups = option
        self.up = nn.ConvTranspose2d(channels, self.width, 2, 2, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.up(x), 2)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        made = found.make(f"{self.name}.up.bias", found.fresh(self.width))
        found.lie(self.param("up"), x, 0)
        if self.groups > 1:
            found.lay(x, self.groups)
            found.lay(made, self.groups)
        return made


@step(3, 5)
class Residual(Step):
    """A block with a shortcut, in place."""

    zero = None

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.width, self.inner, self.outer = channels, conv(channels, inner), conv(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(F.relu(self.inner(x), inplace=True))
        y += x
        return y

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        inner = self.through(found, "inner", x)
        found.tensors.append(inner)
        return self.through(found, "outer", inner, x)


@step()
class Twice(Step):
    """One layer, applied twice: what it makes is what it reads."""

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width, self.conv = channels, conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return self.through(found, "conv", x, x)


@step(4, 8)
class Concat(Step):
    """Concatenation with what is made of it."""

    zero = None

    def __init__(self, channels: int, grown: int) -> None:
        super().__init__()
        self.width, self.conv = channels + grown, conv(channels, grown)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.conv(x))], 1)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return x + self.through(found, "conv", x)


@step(1, 2)
class Depthwise(Step):
    """A filter or two for every channel."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.width, self.times = channels * times, times
        self.conv = conv(channels, self.width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        if self.times > 1:  # where the input stays, filters may leave all the same, equally many of each channel
            found.doubtful += x
        return self.made_by(found, "conv", [label for label in x for _ in range(self.times)])


@step()
class Excite(Step):
    """Squeeze and excitation."""

    zero = None

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width, self.squeeze, self.excite = channels, nn.Linear(channels, 3), nn.Linear(3, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        inner = self.through(found, "squeeze", x)
        return self.through(found, "excite", inner, x)


@step("linear", "matmul", "einsum")
class Last(Step):
    """A layer on the channels as last axis."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind, self.linear = channels, kind, nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if self.kind == "linear":
            return F.gelu(self.linear(x)).permute(0, 3, 1, 2)
        if self.kind == "matmul":
            return (x @ self.linear.weight.t() + self.linear.bias).permute(0, 3, 1, 2)
        return torch.einsum("bhwc,dc->bdhw", x, self.linear.weight)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return self.through(found, "linear", x)


@step("batch", "instance", "group", "one", "each", "layer", "root", "prelu")
class Normalise(Step):
    """A normalisation; over groups of channels, each keeps equally many."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = channels, kind
        kinds: dict[str, Callable[[], nn.Module]] = {
            "batch": lambda: nn.BatchNorm2d(channels),
            "instance": lambda: nn.InstanceNorm2d(channels, affine=True),
            "group": lambda: nn.GroupNorm(2, channels),
            "one": lambda: nn.GroupNorm(1, channels),
            "each": lambda: nn.GroupNorm(channels, channels),
            "layer": lambda: nn.LayerNorm(channels),
            "root": lambda: nn.RMSNorm(channels),
            "prelu": lambda: nn.PReLU(channels),
        }
        self.norm = kinds[kind]()
        self.zero = None if kind == "prelu" else True

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in ("layer", "root"):
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        if self.kind == "group":
            found.lay(x, 2)
        return self.made_by(found, "norm", x)


@step("relu", "silu", "tanh", "sigmoid", "exp")
class Bend(Step):
    """A function of every element; not all leave zero at zero."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = channels, kind
        self.zero = None if kind in ("relu", "silu", "tanh") else False

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "exp":
            return x.clamp(max=2).exp()
        return {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[self.kind](x)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return x


@step("mean", "amax", "softmax", "norm")
class Across(Step):
    """Statistics over the channels: a sum needs removed channels to be zero, a largest one or a share cannot do."""

    zero = None

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = channels, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            return x * x.mean(1, keepdim=True).sigmoid()
        if self.kind == "amax":
            return x * x.amax(1, keepdim=True).sigmoid()
        return x * x.softmax(1) if self.kind == "softmax" else F.normalize(x, dim=1)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return x if self.kind in ("mean", "norm") and zero else found.hold(x)


@step(PERMANENT)
class Scaled(Step):
    """A factor for every channel, a parameter."""

    def __init__(self, channels: int, _: int) -> None:
        super().__init__()
        self.width, self.scale = channels, nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return found.make(f"{self.name}.scale", x)
