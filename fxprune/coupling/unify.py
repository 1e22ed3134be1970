"""Unions and reductions: pointwise ops, normalisations, pooling, and ops that end or hold an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxprune.coupling.flow import (
    Fields,
    Flow,
    Operand,
    argument,
    concrete_shape,
    rule,
    source_of,
    support,
    tensor_arguments,
)
from fxprune.errors import describe
from fxprune.types import Field

aten = torch.ops.aten


@rule(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.contiguous.default,
      aten.clone.default, aten.detach.default, aten.alias.default, aten.to, aten._to_copy.default, aten.silu.default,
      aten.hardsigmoid.default, aten.hardtanh.default, aten.elu.default, aten.softplus.default, aten.mish.default,
      aten.relu6.default, aten.hardswish.default, aten.selu.default, aten.celu.default, aten.rrelu.default,
      aten.log_sigmoid.default, aten.threshold.default, aten.hardshrink.default, aten.softshrink.default,
      aten.zeros_like.default, aten.ones_like.default)  # fmt: skip
def pointwise(flow: Flow, node: fx.Node) -> Fields:
    """Elementwise ops, with broadcasting."""
    operands = [flow.operand(source) for source in tensor_arguments(node)]
    if len(operands) == 1 and len(operands[0].shape) == len(node.meta["val"].shape):
        return operands[0].fields
    return flow.unify(operands, concrete_shape(node), node)


@rule(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, aten.instance_norm.default,
      aten.prelu.default)  # fmt: skip
def channel_affine(flow: Flow, node: fx.Node) -> Fields:
    """Ops whose parameters run along axis 1 of the input."""
    source, *tensors = tensor_arguments(node)
    value = flow.operand(source)
    rank = len(value.shape)
    operands = [value, *(_along(flow.operand(tensor), 1, rank) for tensor in tensors)]
    return flow.unify(operands, value.shape, node)


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(flow: Flow, node: fx.Node) -> Fields:
    """Normalisation over trailing axes: their width may change, and with it the statistics."""
    operands = [flow.operand(source) for source in tensor_arguments(node)]
    fields = flow.unify(operands, concrete_shape(node), node)
    first = len(concrete_shape(node)) - len(argument(node, "normalized_shape"))
    if any(item.axis >= first for item in fields):
        flow.statistics.append(node.name)
    return fields


@rule(aten.group_norm.default)
def group_norm(flow: Flow, node: fx.Node) -> Fields:
    """Normalisation over groups of channels: every group keeps equally many."""
    source, *tensors = tensor_arguments(node)
    value = flow.operand(source)
    fields = flow.unify([value, *(_along(flow.operand(t), 1, len(value.shape)) for t in tensors)], value.shape, node)
    groups = argument(node, "num_groups")
    split = (value.shape[0], groups, value.shape[1] // groups, *value.shape[2:])
    rows = flow.reshape(fields, value.shape, split, node)
    if any(item.axis in (1, 2) for item in rows):
        flow.statistics.append(node.name)
    return flow.reshape(rows, split, value.shape, node)


@rule(aten.max_pool1d, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d, aten.avg_pool2d.default,
      aten.avg_pool3d.default, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d.default,
      aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool2d.default, aten.upsample_nearest2d,
      aten.upsample_bilinear2d)  # fmt: skip
def spatial(flow: Flow, node: fx.Node) -> Any:
    """Ops on each channel's image by itself: a field along the image is held, the others pass."""
    value = flow.operand(source_of(node))
    passing = tuple(item for item in value.fields if max(support(item.ids)) <= 1)
    flow.hold(tuple(f for f in value.fields if f not in passing), f"mixed with its neighbours by {describe(node)}")
    outputs = node.meta["val"]
    return [passing] * len(outputs) if isinstance(outputs, (list, tuple)) else passing


@rule(aten.mean, aten.sum, aten.amax.default, aten.amin.default, aten.softmax.int, aten.log_softmax.int,
      aten.var, aten.std, aten.argmax.default, aten.logsumexp.default, aten.linalg_vector_norm.default,
      aten.cumsum.default)  # fmt: skip
def mixing(flow: Flow, node: fx.Node) -> Fields:
    """Reductions and softmax: over a shrinking axis the result would change with the width, so it is held there."""
    value = flow.operand(source_of(node))
    rank = len(value.shape)
    dims = argument(node, "dim", None)
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = [dim % rank for dim in dims]
    mixed = tuple(item for item in value.fields if set(dims) & set(support(item.ids)))
    flow.hold(mixed, f"its width changes the result of {describe(node)}")
    left = tuple(item for item in value.fields if item not in mixed)
    if len(concrete_shape(node)) == rank:
        return left
    return flow.reduce(left, dims, False, node)


def unknown(flow: Flow, node: fx.Node) -> Any:
    """An op that is not understood holds all that it reads, and says so."""
    for source in tensor_arguments(node):
        flow.hold(flow.values.get(source, ()), f"op not understood: {describe(node)}")
    value = node.meta.get("val")
    return [()] * len(value) if isinstance(value, (list, tuple)) else ()


def _along(operand: Operand, axis: int, rank: int) -> Operand:
    """A one-dimensional operand laid along `axis` of a tensor of `rank` dimensions."""
    view = tuple(-1 if dim == axis else 1 for dim in range(rank))
    shape = tuple(operand.shape[0] if dim == axis else 1 for dim in range(rank))
    return Operand(shape, tuple(Field(item.ids.reshape(view), axis) for item in operand.fields))
