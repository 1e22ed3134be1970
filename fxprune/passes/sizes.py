"""How the integer arguments of an op follow the sizes of its tensors. One short function an op, in one dict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fxprune.coupling.flow import argument, concrete, concrete_shape, source_of
from fxprune.coupling.kept import Kept

aten = torch.ops.aten
Resize = Callable[[fx.Node, Kept], dict[str, Any]]
RESIZE: dict[Any, Resize] = {}


def resize(*targets: Any) -> Callable[[Resize], Resize]:
    """Register how an op's arguments change: a function to the new values of the arguments that change."""

    def register(function: Resize) -> Resize:
        RESIZE.update(dict.fromkeys(targets, function))
        return function

    return register


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give an ATen call another value of the argument with this name in the schema."""
    for index, formal in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if formal.name == name and index < len(node.args):
            node.update_arg(index, value)
            return
    node.update_kwarg(name, value)


@resize(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    name = "shape" if node.target is aten.reshape.default else "size"
    return {name: _literals(argument(node, name), kept.shape(node))}


@resize(aten.unflatten.int)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    sizes = argument(node, "sizes")
    first = argument(node, "dim") % len(concrete_shape(source_of(node)))
    return {"sizes": _literals(sizes, kept.shape(node)[first : first + len(sizes)])}


@resize(aten.split_with_sizes.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, sizes = source_of(node), argument(node, "split_sizes")
    axis = argument(node, "dim") % len(concrete_shape(source))
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return {"split_sizes": [kept.count(source, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]}


@resize(aten.slice.Tensor)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source = source_of(node)
    axis = argument(node, "dim") % len(concrete_shape(source))
    if kept.positions(source, axis) is None:
        return {}
    ends = {"start": argument(node, "start"), "end": argument(node, "end")}
    return {name: kept.count(source, axis, 0, end) for name, end in ends.items() if end}


@resize(aten.narrow.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, start, length = source_of(node), argument(node, "start"), argument(node, "length")
    axis = argument(node, "dim") % len(concrete_shape(source))
    if kept.positions(source, axis) is None:
        return {}
    return {
        "start": kept.count(source, axis, 0, start),
        "length": kept.count(source, axis, start, start + length),
    }


@resize(aten.pad.default, aten.constant_pad_nd.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    shape, amounts = concrete_shape(node), list(argument(node, "pad"))
    for index in range(len(amounts) // 2):
        axis, (left, right) = len(shape) - 1 - index, amounts[2 * index : 2 * index + 2]
        if kept.positions(node, axis) is not None:
            amounts[2 * index] = kept.count(node, axis, 0, left)
            amounts[2 * index + 1] = kept.count(node, axis, shape[axis] - right, shape[axis])
    return {"pad": amounts}


@resize(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
        aten.conv3d.padding)  # fmt: skip
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    channels, inner = kept.shape(argument(node, "input"))[1], kept.shape(argument(node, "weight"))[1]
    return {"groups": channels // inner}


@resize(aten.layer_norm.default, aten.rms_norm.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    return {"normalized_shape": list(kept.shape(node)[-len(argument(node, "normalized_shape")) :])}


def _literals(sizes: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """Sizes with every literal but -1 taken from `shape`; symbolic ones stay."""
    return [size if isinstance(size, fx.Node) or size == -1 else new for size, new in zip(sizes, shape, strict=True)]


def same_shape(found: Sequence[Any], predicted: Sequence[int]) -> bool:
    """Whether the sizes agree wherever they are numbers."""
    return len(found) == len(predicted) and all(
        concrete(size) == other for size, other in zip(found, predicted, strict=True)
    )
