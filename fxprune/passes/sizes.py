"""How the integer arguments of an op follow the sizes of its tensors. One short function an op, in one dict."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import argument, concrete, concrete_shape, dim_argument, source_of
from fxprune.coupling.indices import index_of, root_of
from fxprune.coupling.kept import Kept
from fxprune.errors import PlanError, describe

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


@resize(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default, aten.zeros.default,
        aten.ones.default, aten.full.default, aten.new_zeros.default, aten.new_ones.default,
        aten.new_full.default)  # fmt: skip
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    name = "shape" if node.target is aten.reshape.default else "size"
    return {name: _literals(node, argument(node, name), kept.shape(node))}


@resize(aten.repeat.default, aten.tile.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    name = "repeats" if node.target is aten.repeat.default else "dims"
    counts, after, before = argument(node, name), kept.shape(node), kept.shape(source_of(node))
    skip = len(after) - len(counts)
    before = (1,) * (len(after) - len(before)) + before
    ratios = [new // old for new, old in zip(after[skip:], before[skip:], strict=True)]
    return {name: [count if isinstance(count, fx.Node) else new for count, new in zip(counts, ratios, strict=True)]}


@resize(aten.select.int, aten.select_scatter.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, dim = source_of(node), dim_argument(node)
    if kept.positions(source, dim) is None:
        return {}
    return {"index": kept.count(source, dim, 0, argument(node, "index") % concrete_shape(source)[dim])}


@resize(aten.roll.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, shape = source_of(node), concrete_shape(source_of(node))
    shifts = []
    for shift, dim in zip(argument(node, "shifts"), argument(node, "dims") or (), strict=False):
        size = shape[dim]
        whole = kept.positions(source, dim % len(shape)) is None
        shifts.append(shift if whole else kept.count(source, dim % len(shape), size - shift % size, size))
    return {"shifts": shifts or argument(node, "shifts")}


@resize(aten.group_norm.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    ids = kept.ids(node, 1)
    if ids is None:
        return {}
    rows = ids.reshape(argument(node, "num_groups"), -1)
    whole = bool((rows == rows[:, :1]).all())  # whole groups come and go: each is of one unit
    return {"num_groups": int(kept.counts[rows[:, 0]].sum() if whole else kept.mask[rows].any(-1).sum())}


@resize(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    return {"groups": kept.shape(node)[1] // kept.shape(argument(node, "weight"))[1]}


@resize(aten.unflatten.int)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    sizes = argument(node, "sizes")
    first = argument(node, "dim") % len(concrete_shape(source_of(node)))
    return {"sizes": _literals(node, sizes, kept.shape(node)[first : first + len(sizes)])}


@resize(aten.split_with_sizes.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, sizes = source_of(node), argument(node, "split_sizes")
    axis = dim_argument(node)
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return {"split_sizes": [kept.count(source, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]}


@resize(aten.slice.Tensor, aten.slice_scatter.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, axis = source_of(node), dim_argument(node)
    if kept.positions(source, axis) is None:
        return {}
    if argument(node, "step") != 1:  # whole steps come and go, and it ends behind the last
        end = argument(node, "end")
        return {} if end is None else {"end": max(end, kept.shape(source)[axis])}
    ends = {"start": argument(node, "start"), "end": argument(node, "end")}
    return {name: kept.count(source, axis, 0, end) for name, end in ends.items() if end}


@resize(aten.narrow.default)
def _(node: fx.Node, kept: Kept) -> dict[str, Any]:
    source, start, length = source_of(node), argument(node, "start"), argument(node, "length")
    axis = dim_argument(node)
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


def _literals(node: fx.Node, sizes: Sequence[Any], shape: Sequence[int]) -> list[Any]:
    """Sizes with every literal but -1 taken from `shape`; computed ones stay, as far as they follow from the batch."""
    found: list[Any] = []
    for size, new in zip(sizes, shape, strict=True):
        if isinstance(size, fx.Node):
            found.append(size if concrete(size) == new else _scaled(node, size, new))
        else:
            found.append(size if size == -1 else new)
    return found


def _scaled(node: fx.Node, size: fx.Node, new: int) -> fx.Node:
    """A computed size, such as batch * heads, in which the factor that shrinks is another one."""
    common = math.gcd(concrete(size), new)
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (size, new // common))
        scaled.meta["val"] = size.meta["val"] * (new // common)
        whole = node.graph.call_function(operator.floordiv, (scaled, concrete(size) // common))
        whole.meta["val"] = scaled.meta["val"] // (concrete(size) // common)
    return whole


def moved_positions(gm: fx.GraphModule, kept: Kept) -> dict[str, Tensor]:
    """For each index along a shrinking axis, by its name: where each position of that axis went (-1 for nowhere)."""
    moved = {}
    for node in gm.graph.nodes:
        index = index_of(node)
        if index is None:
            continue
        indices = argument(node, "indices", None)
        dim = dim_argument(node) if indices is None else next(d for d, i in enumerate(indices) if i is not None)
        counts = kept.positions(source_of(node), dim)
        if counts is not None and int(counts.max()) > 1:
            raise PlanError(f"channels that are read at an index cannot be made several times: {describe(node)}")
        if counts is not None:
            moved[str(root_of(index).target)] = torch.where(counts > 0, counts.cumsum(0) - 1, -1)
    return moved


def same_shape(found: Sequence[Any], predicted: Sequence[int]) -> bool:
    """Whether the sizes agree wherever they are numbers."""
    return len(found) == len(predicted) and all(
        concrete(size) == other for size, other in zip(found, predicted, strict=True)
    )
