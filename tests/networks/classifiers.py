"""Small classifiers of images, which the whole pipeline runs on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Plain(nn.Module):
    """Convolutions, pooling, flatten and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(4 * 2 * 2, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class Residual(nn.Module):
    """A stem, a block with an identity shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = conv_norm(3, 4), conv_norm(4, 6), conv_norm(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """A shortcut that takes every other pixel and pads the channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.conv = conv_norm(3, 4), nn.Conv2d(4, 8, 3, 2, 1), conv_norm(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(shortcut + self.conv(F.relu(self.down(x)))).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation with everything before, normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.grow1 = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 3, 3, padding=1),
        )
        self.norm2, self.grow2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.grow2(F.relu(self.norm2(x)))], 1)
        return self.head(F.relu(x).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv_norm(3, 4), conv_norm(4, 8, 1)
        self.depth, self.project = conv_norm(8, 8, 3, groups=8), conv_norm(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.depth(F.hardswish(self.expand(x))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y * gate)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Grouped(nn.Module):
    """A grouped convolution between plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv_norm(3, 8), conv_norm(8, 8, 3, groups=2), conv_norm(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return self.head(x.mean((2, 3)))


class Shuffle(nn.Module):
    """Two units of ShuffleNetV2: chunk, concat and channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.branch = conv_norm(3, 4, 1), conv_norm(3, 4, 1), conv_norm(4, 4)
        self.head = nn.Linear(8, 3)

    def shuffle(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return (
            x.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .contiguous()
            .view(batch, channels, height, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1))
        kept, read = x.chunk(2, dim=1)
        x = self.shuffle(torch.cat([kept, F.relu(self.branch(read))], 1))
        return self.head(x.mean((2, 3)))


class LayerScaled(nn.Module):
    """A ConvNeXt block: channels last, LayerNorm, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.depth, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.up, self.down, self.scale = nn.Linear(4, 6), nn.Linear(6, 4), nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * y).mean((2, 3)))


class Tied(nn.Module):
    """One convolution called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_norm(3, 4), nn.Conv2d(4, 4, 3, padding=1)
        self.second, self.head = self.first, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (Plain, Residual, Padded, Dense, Depthwise, Grouped, Shuffle, LayerScaled, Tied)
}
