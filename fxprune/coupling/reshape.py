"""Moves that give the same elements other axes: reshapes, permutations, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from fxprune.calls import argument, concrete_shape, dim_argument, source_of
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.operand import Fields, Operand
from fxprune.errors import describe

aten = torch.ops.aten


@rule(aten.view.default, aten.reshape, aten._unsafe_view, aten._reshape_alias.default, aten.flatten.using_ints,
      aten.unflatten.int, aten.squeeze, aten.unsqueeze, aten.atleast_1d.default, aten.view_copy.default)  # fmt: skip
def reshape(flow: Flow, node: fx.Node) -> Fields:
    """Row-major reshapes."""
    source = flow.operand(source_of(node))
    return flow.reshape(source.fields, source.shape, concrete_shape(node), node)


@rule(aten.reshape_as.default, aten.view_as.default)
def reshape_as(flow: Flow, node: fx.Node) -> Fields:
    """A row-major reshape to the sizes of another tensor, which shrink with the result."""
    shape = concrete_shape(node)
    operands = [Operand(shape, reshape(flow, node)), flow.operand(argument(node, "other"))]
    return flow.unify(operands, shape, node, lambda zero: zero[0])


@rule(aten.permute, aten.transpose.int, aten.t, aten.numpy_T, aten.mT, aten.movedim, aten.swapaxes.default,
      aten.swapdims.default, aten.moveaxis)  # fmt: skip
def permute(flow: Flow, node: fx.Node) -> Fields:
    """Axis permutations: where each axis went is read off a tensor of distinct sizes."""
    source = source_of(node)
    probe = torch.empty(tuple(range(2, len(concrete_shape(source)) + 2)), device="meta")
    permuted = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return flow.permute(flow.values[source], [size - 2 for size in permuted.shape])


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(flow: Flow, node: fx.Node) -> Fields:
    """[.., c r r, h, w] to [.., c, h r, w r]: the r * r channels behind an image leave together."""
    shape, factor = concrete_shape(source_of(node)), int(argument(node, "upscale_factor"))
    *batch, channels, height, width = shape
    at = len(batch)
    split = (*batch, channels // factor**2, factor, factor, height, width)
    fields = flow.reshape(flow.values[source_of(node)], shape, split, node)
    fields = flow.fix(fields, (at + 1, at + 2), f"channels that become one image in {describe(node)}")
    order = (*range(at + 1), at + 3, at + 1, at + 4, at + 2)
    return flow.reshape(flow.permute(fields, order), _permuted(split, order), concrete_shape(node), node)


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(flow: Flow, node: fx.Node) -> Fields:
    """[.., c, h r, w r] to [.., c r r, h, w]: a channel becomes r * r of them."""
    shape, factor = concrete_shape(source_of(node)), int(argument(node, "downscale_factor"))
    *batch, channels, height, width = shape
    at = len(batch)
    split = (*batch, channels, height // factor, factor, width // factor, factor)
    order = (*range(at + 1), at + 2, at + 4, at + 1, at + 3)
    fields = flow.permute(flow.reshape(flow.values[source_of(node)], shape, split, node), order)
    return flow.reshape(fields, _permuted(split, order), concrete_shape(node), node)


@rule(aten.channel_shuffle.default)
def channel_shuffle(flow: Flow, node: fx.Node) -> Fields:
    """[b, g c, ..] to [b, c g, ..]."""
    shape, groups = concrete_shape(source_of(node)), int(argument(node, "groups"))
    split = (shape[0], groups, shape[1] // groups, *shape[2:])
    order = (0, 2, 1, *range(3, len(split)))
    fields = flow.permute(flow.reshape(flow.values[source_of(node)], shape, split, node), order)
    return flow.reshape(fields, _permuted(split, order), shape, node)


@rule(aten.im2col.default)
def unfold(flow: Flow, node: fx.Node) -> Fields:
    """[b, c, h, w] to [b, c k k, patches]: a channel becomes k * k of them."""
    area = _area(node)
    fields = flow.fix(flow.values[source_of(node)], (2, 3), f"cut into patches by {describe(node)}")
    spread = (replace(item, ids=item.ids.squeeze(-1).repeat_interleave(area, 1)) for item in fields)
    return tuple(item for one in spread for item in flow.normalized(one.ids, (1,), one.zero))


@rule(aten.col2im.default)
def fold(flow: Flow, node: fx.Node) -> Fields:
    """[b, c k k, patches] to [b, c, h, w]: the k * k channels behind a channel leave together."""
    area, shape = _area(node), concrete_shape(source_of(node))
    split = (shape[0], shape[1] // area, area, *shape[2:])
    fields = flow.reshape(flow.values[source_of(node)], shape, split, node)
    fields = flow.fix(fields, (2, 3), f"put together from patches by {describe(node)}")
    return tuple(item for item in fields if item.axis < 2)


@rule(aten.unfold.default)
def windows(flow: Flow, node: fx.Node) -> Fields:
    """Sliding windows along one axis, which move to a new last axis."""
    dim = dim_argument(node, "dimension")
    fields = flow.fix(flow.values[source_of(node)], (dim,), f"cut into windows by {describe(node)}")
    return tuple(replace(item, ids=item.ids[..., None]) for item in fields)


@rule(aten.view_as_real.default)
def view_as_real(flow: Flow, node: fx.Node) -> Fields:
    """A new last axis of real and imaginary parts."""
    return tuple(replace(item, ids=item.ids[..., None]) for item in flow.values[source_of(node)])


@rule(aten.view_as_complex.default)
def view_as_complex(flow: Flow, node: fx.Node) -> Fields:
    """The last axis becomes one number: both parts leave together."""
    last = len(concrete_shape(source_of(node))) - 1
    fields = flow.fix(flow.values[source_of(node)], (last,), f"two parts of one complex number in {describe(node)}")
    return tuple(replace(item, ids=item.ids[..., 0]) for item in fields)


def _area(node: fx.Node) -> int:
    height, width = argument(node, "kernel_size")
    return int(height * width)


def _permuted(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)
