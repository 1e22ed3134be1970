"""Steps with convolutions and other layers between channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.partition import Labels, Partition
from tests.networks.steps import BY_GROUP, Step, conv, step


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
