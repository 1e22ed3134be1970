"""Steps that keep the channels and change their values: normalisations, functions, gates, statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.partition import Labels, Partition
from tests.networks.steps import Step, conv, step


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
        kinds: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh}
        return kinds.get(self.kind, torch.sigmoid)(x)

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


@step()
class Scaled(Step):
    """A factor for every channel, a parameter."""

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width, self.scale = channels, nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return found.make(f"{self.name}.scale", x)


@step("mul", "glu", "maximum", "amax", "strided", "swiglu")
class Gate(Step):
    """Two halves of a wider layer meet."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind, self.conv = channels, kind, conv(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "glu":
            return F.glu(x, 1)
        if self.kind == "amax":
            return x.unflatten(1, (self.width, 2)).amax(2)
        if self.kind == "strided":
            return x[:, ::2] * x[:, 1::2]
        left, right = x.chunk(2, 1)
        if self.kind == "swiglu":
            return F.silu(left) * right
        return left * right if self.kind == "mul" else torch.maximum(left, right)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        made = self.through(found, "conv", x)
        pairs = self.kind in ("amax", "strided")
        left, right = (made[::2], made[1::2]) if pairs else (made[: self.width], made[self.width :])
        return found.join(left, right)
