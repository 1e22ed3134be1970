"""Contractions: broadcast, unify, reduce. Linear, matmul and convolution are one function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxprune.coupling.flow import Fields, Flow, Operand, argument, broadcast_shape, concrete_shape, rule
from fxprune.errors import describe
from fxprune.types import Axis

aten = torch.ops.aten


def contract(flow: Flow, operands: Sequence[Operand], dims: Sequence[int], node: fx.Node) -> Fields:
    """Fields of a product of operands over one index space, summed over `dims`."""
    shape = broadcast_shape(operand.shape for operand in operands)
    return flow.reduce(flow.unify(operands, shape, node), dims, False, node)


@rule(aten.linear.default)
def linear(flow: Flow, node: fx.Node) -> Fields:
    """x[..., 1, in] * w[out, in], summed over in."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    value = flow.operand(source)
    rank = len(value.shape)
    spread = (*value.shape[:-1], 1, value.shape[-1])
    operands = [Operand(spread, flow.reshape(value.fields, value.shape, spread, node)), flow.operand(weight)]
    fields = contract(flow, operands, [rank], node)
    _consume(flow, weight, 1)
    return _with_bias(flow, fields, bias, rank - 1, node)


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding, aten.conv1d.padding,
      aten.conv3d.padding)  # fmt: skip
def convolution(flow: Flow, node: fx.Node) -> Fields:
    """x[n, group, 1, in] * w[group, out, in], summed over in; the kernel's extent is held."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    groups = argument(node, "groups")
    value, filters = flow.operand(source), flow.operand(weight)
    if len(value.shape) != len(filters.shape):
        for operand in (value, filters):
            flow.hold(operand.fields, f"an input without a batch dimension in {describe(node)}")
        return ()
    batch, channels, *image = value.shape
    out, inner = filters.shape[:2]
    flow.hold(_beyond(filters, 2), f"kernel extent of {describe(node)}")
    flow.hold(_beyond(value, 2), f"an image axis of {describe(node)}")
    spread = (batch, groups, 1, channels // groups)
    x = flow.reshape(_within(value, 2), (batch, channels), spread, node)
    split = (groups, out // groups, inner)
    w = flow.reshape(_within(filters, 2), (out, inner), split, node)
    fields = contract(flow, [Operand(spread, x), Operand(split, w)], [3], node)
    fields = flow.reshape(fields, (batch, groups, out // groups), (batch, out), node)
    _consume(flow, weight, 1)
    images = tuple(type(item)(item.ids[(...,) + (None,) * len(image)], item.axis) for item in fields)
    return _with_bias(flow, images, bias, 1, node)


def _with_bias(flow: Flow, fields: Fields, bias: fx.Node | None, axis: int, node: fx.Node) -> Fields:
    if bias is None:
        return fields
    shape = concrete_shape(node)
    term = flow.operand(bias)
    spread = tuple(size if dim == axis else 1 for dim, size in enumerate(shape))
    along = flow.reshape(term.fields, term.shape, spread, node)
    return flow.unify([Operand(shape, fields), Operand(spread, along)], shape, node)


def _consume(flow: Flow, weight: fx.Node, dim: int) -> None:
    """Axis `dim` of a weight is read by the contraction, not made by it."""
    if weight.op == "get_attr":
        flow.consumed.add(Axis(str(weight.target), dim))


def _within(operand: Operand, rank: int) -> Fields:
    """The fields on the first `rank` axes, without the others, along which they do not vary."""
    inside = (item for item in operand.fields if item.axis < rank)
    return tuple(type(item)(item.ids[(...,) + (0,) * (item.ids.ndim - rank)], item.axis) for item in inside)


def _beyond(operand: Operand, rank: int) -> Fields:
    return tuple(item for item in operand.fields if item.axis >= rank)
