"""Views: which calls share memory with their argument, how a view is taken again, and how one is written through."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxprune.calls import argument, bound_arguments, concrete, concrete_shape, dim_argument, source_of
from fxprune.errors import CaptureError, describe

aten = torch.ops.aten
Scatter = Callable[[fx.Node, fx.Node, fx.Node], fx.Node]
_SCATTERS: dict[Any, Scatter] = {}


def scatters(*packets: Any) -> Callable[[Scatter], Scatter]:
    """Register how a view is written through: a function of the view, what it views, and the view's new value."""

    def register(function: Scatter) -> Scatter:
        for packet in packets:
            _SCATTERS.update(dict.fromkeys((getattr(packet, name) for name in packet.overloads()), function))
        return function

    return register


def viewed(node: fx.Node) -> fx.Node | None:
    """The argument that the result of a call shares memory with; None where it is a tensor of its own."""
    if node.target is operator.getitem:
        source = source_of(node)
        return source if viewed(source) is not None else None
    if not isinstance(node.target, OpOverload):
        return None
    aliases = [result.alias_info for result in node.target._schema.returns]
    if not any(alias is not None and not alias.is_write for alias in aliases):
        return None
    copies = _MAY_COPY.get(node.target.overloadpacket)
    return None if copies is not None and copies(node) else source_of(node)


def _reshape_copies(node: fx.Node) -> bool:
    try:
        _like(source_of(node)).view(concrete_shape(node))
    except RuntimeError:
        return True
    return False


def _contiguous_copies(node: fx.Node) -> bool:
    layout = node.kwargs.get("memory_format", torch.contiguous_format)  # the schema's default is a number
    assert isinstance(layout, torch.memory_format)
    return not _like(source_of(node)).is_contiguous(memory_format=layout)


def _conversion_copies(node: fx.Node) -> bool:
    before, after = source_of(node).meta["val"], node.meta["val"]
    return bool(bound_arguments(node).get("copy")) or (before.dtype, before.device) != (after.dtype, after.device)


def _like(node: fx.Node) -> Tensor:
    """A tensor without memory, laid out as the example's value of the node is."""
    strides = [concrete(stride) for stride in node.meta["val"].stride()]
    return torch.empty_strided(concrete_shape(node), strides, device="meta")


# What shares memory only where the layout, or the type, allows it.
_MAY_COPY: dict[Any, Callable[[fx.Node], bool]] = {
    aten.reshape: _reshape_copies,
    aten.flatten: _reshape_copies,
    aten.ravel: _reshape_copies,
    aten.contiguous: _contiguous_copies,
    aten.to: _conversion_copies,
    aten.type_as: _conversion_copies,
}


def replayed(view: fx.Node, source: fx.Node) -> fx.Node:
    """The same view, taken of `source`."""
    made = view.graph.create_node(view.op, view.target, (source, *view.args[1:]), dict(view.kwargs))
    made.meta = dict(view.meta)
    return made


def scattered(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    """What `before` becomes when `value` is written through its view. Raises CaptureError where nobody knows how."""
    target = source_of(view).target if view.target is operator.getitem else view.target
    if view.target is aten.slice.Tensor and view.meta["val"].shape == before.meta["val"].shape:
        return value  # `x[:]`
    if target not in _SCATTERS:
        raise CaptureError(
            f"the forward writes through {describe(view)}, which has no inverse: write into the tensor itself, or "
            "compute a new one"
        )
    return _SCATTERS[target](view, before, value)


def call(like: fx.Node, target: Any, *args: Any) -> fx.Node:
    """A call with the shape and type of `like`."""
    made = like.graph.call_function(target, args)
    made.meta = {**like.meta, "nn_module_stack": args[0].meta.get("nn_module_stack")}
    return made


@scatters(aten.slice)
def _slice(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    a = bound_arguments(view)
    return call(before, aten.slice_scatter.default, before, value, a["dim"], a["start"], a["end"], a["step"])


@scatters(aten.narrow)
def _narrow(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    start, length = argument(view, "start"), argument(view, "length")
    return call(before, aten.slice_scatter.default, before, value, argument(view, "dim"), start, start + length)


@scatters(aten.select)
def _select(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, aten.select_scatter.default, before, value, argument(view, "dim"), argument(view, "index"))


@scatters(aten.diagonal)
def _diagonal(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    dims = (argument(view, name) for name in ("offset", "dim1", "dim2"))
    return call(before, aten.diagonal_scatter.default, before, value, *dims)


@scatters(aten.unbind)
def _unbind(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, aten.select_scatter.default, before, value, argument(source_of(view), "dim"), view.args[1])


@scatters(aten.split, aten.split_with_sizes, aten.chunk)
def _split(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    parts, number = source_of(view), view.args[1]
    assert isinstance(number, int)
    dim = dim_argument(parts)
    ends = [0]
    for part in parts.meta["val"]:
        ends.append(ends[-1] + concrete(part.shape[dim]))
    return call(before, aten.slice_scatter.default, before, value, dim, ends[number], ends[number + 1])


@scatters(aten.t, aten.transpose, aten.swapaxes, aten.swapdims)
def _swap(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, view.target, value, *view.args[1:])


@scatters(aten.permute)
def _permute(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    dims = [dim % len(view.meta["val"].shape) for dim in argument(view, "dims")]
    return call(before, aten.permute.default, value, [dims.index(dim) for dim in range(len(dims))])


@scatters(aten.movedim)
def _movedim(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, view.target, value, argument(view, "destination"), argument(view, "source"))


@scatters(aten.view, aten.reshape, aten.flatten, aten.unflatten, aten.ravel, aten.squeeze, aten.unsqueeze, aten.view_as)
def _reshape(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    sizes: list[Any] = []
    for dim, size in enumerate(before.meta["val"].shape):
        if not isinstance(size, int):
            node = before.graph.call_function(aten.sym_size.int, (before, dim))
            node.meta["val"] = size
            size = node
        sizes.append(size)
    return call(before, aten.reshape.default, value, sizes)


@scatters(aten.view_as_real)
def _real(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, aten.view_as_complex.default, value)


@scatters(aten.view_as_complex)
def _complex(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return call(before, aten.view_as_real.default, value)


@scatters(aten.alias, aten.detach, aten.contiguous, aten.to, aten.type_as)
def _same(view: fx.Node, before: fx.Node, value: fx.Node) -> fx.Node:
    return value
