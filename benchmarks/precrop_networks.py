"""The networks that are trained from scratch: small, for 32 pixels, as torch initialises their layers (Kaiming)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters: every second pixel, new channels padded by zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """The block's output: [batch, outputs, height / stride, width / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """He et al., "Deep Residual Learning" (2016), for CIFAR-10, with shortcuts of option A: 0.27 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BasicBlock(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: [batch, 10]."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class ConvBnRelu(nn.Sequential):
    """A convolution, BatchNorm and ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expansion, a depthwise convolution, and a projection; with a shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvBnRelu(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBnRelu(inner, inner, 3, stride, groups=inner)
        self.project, self.bn = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block's output: [batch, outputs, height / stride, width / stride]."""
        y: Tensor = self.bn(self.project(self.depthwise(self.expand(x))))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Sandler et al. (2018) at half the width, for 32 pixels: strides of 8 in all, 0.59 M parameters."""

    # expansion, outputs, blocks, stride of the first
    STAGES = ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 1), (6, 160, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        blocks, inputs = [], 16
        for expansion, outputs, count, stride in self.STAGES:
            for block in range(count):
                blocks.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        self.stem, self.blocks, self.last = ConvBnRelu(3, 16, 3), nn.Sequential(*blocks), ConvBnRelu(inputs, 640, 1)
        self.linear = nn.Linear(640, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: [batch, 10]."""
        logits: Tensor = self.linear(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class Network(NamedTuple):
    """How a network is built and trained, and at which budgets: limits by the names of the costs, joined by commas."""

    title: str
    build: Callable[[], nn.Module]
    rate: float
    budgets: tuple[str, ...]


NETWORKS = {
    "resnet20": Network("ResNet-20", ResNet20, 0.1, ("params=0.5", "params=0.25")),
    "mobilenet_v2": Network("MobileNetV2 x0.5", MobileNetV2, 0.1, ("params=0.5,flops=0.5",)),
}
