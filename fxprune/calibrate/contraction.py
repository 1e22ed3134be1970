"""Contractions with a parameter as matrices: rows in, rows out, a system for each group of channels.

To teach fxprune another contraction, write a class with the members of `Contraction` and register it with
`@contraction(op)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import bound_arguments

_REGISTRY: dict[Any, type[Contraction]] = {}


class Contraction(ABC):
    """A node that multiplies its input with a parameter, seen as y = x W + b on rows.

    name: of the node. source, bias: of the nodes of its input and its bias, if any. weight: of the parameter. kernel:
        extents.
    systems: how many independent maps there are, 1 but for grouped convolutions.
    output_axis: the axis of the node's value that its channels run along.
    """

    output_axis: int

    def __init__(self, node: fx.Node) -> None:
        arguments = bound_arguments(node)
        self.name, self.source = node.name, _name(arguments["input"])
        self.weight = str(arguments["weight"].target)
        self.bias = None if arguments["bias"] is None else _name(arguments["bias"])  # it may be computed
        self.systems = int(arguments.get("groups") or 1)
        self.kernel = tuple(arguments["weight"].meta["val"].shape[2:])
        self.arguments = arguments

    @abstractmethod
    def positions(self, y: Tensor) -> int:
        """How many rows the value `y` of the node has."""

    @abstractmethod
    def rows(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The rows at `index` of the input `x` of the node: [systems, rows, inputs]. Of `y` only the sizes count."""

    @abstractmethod
    def channel_rows(self, y: Tensor, index: Tensor | None = None) -> Tensor:
        """The rows at `index` of a value with the sizes of the node's, or all: [rows, channels]."""

    def targets(self, y: Tensor, index: Tensor | None = None) -> Tensor:
        """The rows at `index` of a value of the node, or all, as [systems, rows, outputs]."""
        rows = self.channel_rows(y, index)
        return rows.reshape(len(rows), self.systems, -1).movedim(1, 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as [systems, inputs, outputs]."""
        return weight.reshape(self.systems, weight.shape[0] // self.systems, -1).mT

    def tensor(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, in the shape and dtype of `like`."""
        return matrix.mT.reshape(like.shape).to(like)

    def along_channels(self, values: Tensor, ndim: int) -> Tensor:
        """Channel values [systems, outputs] in the shape that broadcasts against an output of `ndim` dimensions."""
        return values.reshape(-1, *[1] * (ndim - 1 - self.output_axis % ndim))


def contraction(*ops: Any) -> Callable[[type[Contraction]], type[Contraction]]:
    """Register the class that reads these ops."""

    def register(cls: type[Contraction]) -> type[Contraction]:
        _REGISTRY.update(dict.fromkeys(ops, cls))
        return cls

    return register


def contractions(gm: fx.GraphModule) -> dict[str, Contraction]:
    """The contractions of a graph by node name, in its order. One whose weight is computed or shared is left out."""
    found = [
        _REGISTRY[node.target](node)
        for node in gm.graph.nodes
        if node.target in _REGISTRY and _is_parameter(bound_arguments(node)["weight"])
    ]
    uses: dict[str, int] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    return {item.name: item for item in found if uses[item.weight] == 1}


def _name(value: Any) -> str:
    assert isinstance(value, fx.Node)
    return value.name


def _is_parameter(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


@contraction(torch.ops.aten.linear.default)
class _Linear(Contraction):
    """A matrix product along the last axis."""

    output_axis = -1

    def positions(self, y: Tensor) -> int:
        return y.numel() // y.shape[-1]

    def rows(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])[index][None]

    def channel_rows(self, y: Tensor, index: Tensor | None = None) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        return rows if index is None else rows[index]


@contraction(
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
    torch.ops.aten.conv1d.padding,
    torch.ops.aten.conv2d.padding,
    torch.ops.aten.conv3d.padding,
)
class _Convolution(Contraction):
    """A convolution: a row is the patch under one output position."""

    output_axis = 1

    def positions(self, y: Tensor) -> int:
        return y.numel() // y.shape[1]

    def rows(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        spatial = x.ndim - 2
        kernel = self.kernel
        stride, dilation = self._each("stride", spatial), self._each("dilation", spatial)
        before = self._padding(kernel, dilation)
        image, *places = _unravel(index, (y.shape[0], *y.shape[2:]))
        where, outside = [image.view(-1, *[1] * spatial)], torch.zeros((), dtype=torch.bool, device=index.device)
        for axis, place in enumerate(places):
            offsets = torch.arange(kernel[axis], device=index.device) * dilation[axis] - before[axis]
            shape = [1] * spatial
            shape[axis] = -1
            at = (place * stride[axis]).view(-1, *[1] * spatial) + offsets.view(shape)
            inside = at.clamp(0, x.shape[2 + axis] - 1)
            where.append(inside)
            outside = outside | (inside != at)
        patches = x.movedim(1, -1)[tuple(where)].masked_fill(outside.unsqueeze(-1), 0)  # the padding, without a copy
        return patches.movedim(-1, 1).reshape(len(index), self.systems, -1).movedim(1, 0)

    def channel_rows(self, y: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None:
            return y.movedim(1, -1).reshape(-1, y.shape[1])
        image, *places = _unravel(index, (y.shape[0], *y.shape[2:]))
        return y.movedim(1, -1)[(image, *places)]

    def _each(self, name: str, spatial: int) -> list[int]:
        value = self.arguments[name]
        sizes = [value] if isinstance(value, int) else list(value)
        return sizes * spatial if len(sizes) == 1 else sizes

    def _padding(self, kernel: tuple[int, ...], dilation: list[int]) -> list[int]:
        """Zeros before each spatial axis."""
        padding = self.arguments["padding"]
        if padding == "valid":
            return [0] * len(kernel)
        if padding == "same":
            return [step * (size - 1) // 2 for step, size in zip(dilation, kernel, strict=True)]
        return self._each("padding", len(kernel))


def _unravel(index: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Flat positions as one position for each axis."""
    places = []
    for size in reversed(shape):
        places.append(index % size)
        index = index // size
    return places[::-1]
