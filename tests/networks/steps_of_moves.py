"""Steps that move channels about, and steps that combine what was moved with what was not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.partition import Labels, Partition
from tests.networks.steps import Step, conv, step

ROTATION = 2
ORDER = [2, 0, 3, 1]  # of every four channels


def reordered(labels: Labels) -> Labels:
    return [labels[first + place] for first in range(0, len(labels), 4) for place in ORDER]


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(1),
    "roll": lambda x: torch.roll(x, ROTATION, 1),
    "swap": lambda x: torch.cat([*reversed(x.chunk(2, 1))], 1),
    "split": lambda x: torch.cat([*reversed(x.split([1, x.shape[1] - 1], 1))], 1),
}
MOVED: dict[str, Callable[[Labels], Labels]] = {
    "flip": lambda x: x[::-1],
    "roll": lambda x: x[-ROTATION:] + x[:-ROTATION],
    "swap": lambda x: x[len(x) // 2 :] + x[: len(x) // 2],
    "split": lambda x: x[1:] + x[:1],
    "index": reordered,
    "index_select": reordered,
    "gather": reordered,
}


@step(*((kind, onto) for kind in MOVED for onto in (False, True)))
class Move(Step):
    """The channels in another order; `onto` adds them to themselves."""

    zero = None
    order: Tensor

    def __init__(self, channels: int, option: tuple[str, bool]) -> None:
        super().__init__()
        self.width, (self.kind, self.onto) = channels, option
        self.register_buffer("order", torch.tensor(reordered(list(range(channels)))))

    def move(self, x: Tensor) -> Tensor:
        if self.kind == "index":
            return x[:, self.order]
        if self.kind == "index_select":
            return x.index_select(1, self.order)
        if self.kind == "gather":
            return x.gather(1, self.order[None, :, None, None].expand(x.shape[0], -1, *x.shape[2:]))
        return MOVES[self.kind](x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.move(x) if self.onto else self.move(x)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        cut = {"split": 1, "swap": len(x) // 2}.get(self.kind, 0)
        found.tensors += [x[:cut], x[cut:]]
        return found.join(x, MOVED[self.kind](x)) if self.onto else MOVED[self.kind](x)


@step("view", "op")
class Shuffle(Step):
    """A channel shuffle in two rows: channels at the same position of both leave together, unless rows are units."""

    zero = None

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = channels, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "op":
            return F.channel_shuffle(x, 2)
        return x.reshape(x.shape[0], 2, self.width // 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        half = len(x) // 2
        if any(len(set(found.classes(row))) > 1 for row in (x[:half], x[half:])):
            found.join(x[:half], x[half:])
        return [x[row * half + place] for place in range(half) for row in range(2)]


@step("chunk", "slice", "narrow", "split")
class Halves(Step):
    """One half passes, the other goes through a layer."""

    zero = None

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind, self.conv = channels, kind, conv(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.width // 2
        if self.kind == "chunk":
            left, right = x.chunk(2, 1)
        elif self.kind == "split":
            left, right = x.split(half, 1)
        elif self.kind == "slice":
            left, right = x[:, :-half], x[:, half:]
        else:
            left, right = x.narrow(1, 0, half), x.narrow(1, half, half)
        return torch.cat([left, self.conv(right)], 1)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        half = len(x) // 2
        found.tensors += [x[:half], x[half:]]
        return x[:half] + self.through(found, "conv", x[half:])


@step()
class Stack(Step):
    """Two rows, taken apart and stacked in the other order."""

    zero = None

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width = channels

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unflatten(1, (2, self.width // 2)).unbind(1)
        return torch.stack([second, first], 1).flatten(1, 2)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        first, second = found.lay(x, 2)
        found.tensors += [first, second]
        return second + first


@step("tile", "repeat", "interleave")
class Copies(Step):
    """Every channel twice, then a layer."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind, self.conv = 8, kind, conv(2 * channels, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "interleave":
            return self.conv(x.repeat_interleave(2, 1))
        return self.conv(x.repeat(1, 2, 1, 1) if self.kind == "repeat" else x.tile((1, 2, 1, 1)))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return self.through(
            found, "conv", [label for label in x for _ in range(2)] if self.kind == "interleave" else x + x
        )


@step(0, 1)
class Pad(Step):
    """Zeros on both sides, which a wider layer is added to, or nothing."""

    zero = None

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.width = channels + 4
        self.convs = nn.ModuleList(conv(channels, self.width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, (0, 0, 0, 0, 1, 3))
        for layer in self.convs:
            y = y + layer(x)
        return y

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        y = found.fresh(1) + x + found.fresh(3)
        found.doubtful += x  # beside channels that stay, padding stays
        for layer, _ in enumerate(self.convs):
            self.through(found, f"convs.{layer}", x, y)
        return y


@step("shuffle", "hand")
class Pixels(Step):
    """Four channels become four pixels of one."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind, self.conv = channels, kind, conv(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "shuffle":
            return F.avg_pool2d(F.pixel_shuffle(x, 2), 2)
        batch, _, height, width = x.shape
        x = x.view(batch, self.width, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return F.avg_pool2d(x.reshape(batch, self.width, 2 * height, 2 * width), 2)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        made = self.through(found, "conv", x)
        for pixel in range(1, 4):
            found.join(made[::4], made[pixel::4])
        return made[::4]


@step()
class Unshuffle(Step):
    """Four pixels become four channels of one, which a layer reads."""

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width, self.conv = 8, nn.Conv2d(4 * channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(F.pixel_unshuffle(x, 2)), scale_factor=2.0)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        return self.through(found, "conv", [label for label in x for _ in range(4)])


@step("select", "slice")
class Look(Step):
    """One channel, by its number, is looked at by all: it stays."""

    zero = None

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = channels, kind

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, 1].unsqueeze(1) if self.kind == "select" else x[:, 1:2]
        return x * seen.sigmoid()

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        found.hold(x[1:2])
        return x


@step()
class Write(Step):
    """The first two channels are written over."""

    zero = None

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width, self.conv = channels, conv(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :2] = self.conv(x)
        return y

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        self.through(found, "conv", x, x[:2])
        return x


@step()
class Constants(Step):
    """Four constant channels before the others: they stay, unless they are added to what leaves."""

    zero = False

    def __init__(self, channels: int, _: None) -> None:
        super().__init__()
        self.width = channels + 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.new_full((x.shape[0], 4, *x.shape[2:]), 0.5), x], 1)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        constants = found.fresh(4)
        found.tensors.append(constants)
        return constants + x
