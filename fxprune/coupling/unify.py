"""Unions: pointwise ops, normalisations with their affines, lookups, and ops on each channel's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxprune.calls import argument, bound_arguments, concrete_shape, source_of, tensor_arguments
from fxprune.coupling.flow import Flow, Vanishes, rule
from fxprune.coupling.operand import Fields, Operand, laid_along
from fxprune.coupling.probe import vanishes
from fxprune.errors import describe
from fxprune.types import Axis

aten = torch.ops.aten


@rule(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
      aten.feature_alpha_dropout.default, aten.contiguous.default, aten.clone.default, aten.detach.default,
      aten.alias.default, aten.to, aten._to_copy.default, aten.lift_fresh_copy.default,
      aten.silu.default, aten.hardsigmoid.default, aten.hardtanh.default, aten.elu.default, aten.softplus.default,
      aten.mish.default, aten.relu6.default, aten.hardswish.default, aten.selu.default, aten.celu.default,
      aten.rrelu.default, aten.log_sigmoid.default, aten.threshold.default, aten.hardshrink.default,
      aten.softshrink.default, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
      aten.masked_fill, aten.where.self, aten.square.default, aten.real.default, aten.imag.default,
      aten.complex.default, aten.polar.default, aten.float_power)  # fmt: skip
def pointwise(flow: Flow, node: fx.Node) -> Fields:
    """Elementwise ops, with broadcasting."""
    sources = tensor_arguments(node)
    operands = [flow.operand(source) for source in sources]
    if not any(operand.fields for operand in operands):
        return ()
    return flow.unify(operands, concrete_shape(node), node, lambda zero: vanishes(node, zero))


@rule(aten.type_as.default)
def type_as(flow: Flow, node: fx.Node) -> Fields:
    """The first argument; of the second only the dtype is read."""
    fields: Fields = flow.values[source_of(node)]
    return fields


@rule(aten.copy.default, aten.copy_.default, aten.fill.Tensor, aten.fill.Scalar, aten.zero.default)
def overwrite(flow: Flow, node: fx.Node) -> Fields:
    """The first argument with the values of the second."""
    operands = [flow.operand(source) for source in tensor_arguments(node)]
    zero = node.target is aten.zero.default or (len(operands) == 1 and argument(node, "value", 1) == 0)
    return flow.unify(operands, concrete_shape(node), node, lambda zeros: zeros[1] if len(zeros) > 1 else zero)


@rule(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, aten.instance_norm.default,
      aten._batch_norm_no_update.default)  # fmt: skip
def channel_norm(flow: Flow, node: fx.Node) -> Any:
    """Normalisation of each channel by itself; what it measures on the input it measures over all other axes."""
    measures = bool(argument(node, "training", False) or argument(node, "use_input_stats", False))
    fields = _along_channels(flow, node, range(2, _rank(node)) if measures else (), _norm_vanishes(node))
    return [fields, (), (), ()][: len(node.meta["val"])] if isinstance(node.meta["val"], (list, tuple)) else fields


@rule(aten.prelu.default)
def prelu(flow: Flow, node: fx.Node) -> Fields:
    """A slope for each channel, or one for all."""
    return _along_channels(flow, node, (), lambda zero: zero[0])


@rule(aten.group_norm.default)
def group_norm(flow: Flow, node: fx.Node) -> Fields:
    """Normalisation over groups of channels: every group keeps equally many."""
    shape, groups = concrete_shape(node), argument(node, "num_groups")
    fields = _along_channels(flow, node, range(2, len(shape)), _norm_vanishes(node))
    split = (shape[0], groups, shape[1] // groups, *shape[2:])
    rows = flow.reshape(fields, shape, split, node)
    if any(item.axis == 2 for item in rows):
        flow.statistics.append(node.name)
    return flow.reshape(rows, split, shape, node)


@rule(aten.layer_norm.default, aten.rms_norm.default)
def trailing_norm(flow: Flow, node: fx.Node) -> Fields:
    """Normalisation over trailing axes: their width may change, and with it the statistics."""
    operands = [flow.operand(source) for source in tensor_arguments(node)]
    fields = flow.unify(operands, concrete_shape(node), node, _norm_vanishes(node))
    first = _rank(node) - len(argument(node, "normalized_shape"))
    if any(item.axis >= first for item in fields):
        flow.statistics.append(node.name)
    across = tuple(item for item in fields if item.axis < first)
    within = tuple(item for item in fields if item.axis >= first)
    return within + flow.fix(across, range(first, _rank(node)), f"normalized together by {describe(node)}")


@rule(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.avg_pool1d, aten.avg_pool2d.default,
      aten.avg_pool3d.default, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d.default,
      aten.adaptive_avg_pool3d.default, aten.adaptive_max_pool1d, aten.adaptive_max_pool2d.default,
      aten.adaptive_max_pool3d.default, aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
      aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d,
      aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten.upsample_trilinear3d,
      aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, aten.grid_sampler.default,
      aten.max_pool2d_with_indices.default, aten.max_unpool2d.default)  # fmt: skip
def spatial(flow: Flow, node: fx.Node) -> Any:
    """Ops on each channel's image by itself: along the image nothing can shrink."""
    source, *others = tensor_arguments(node)
    images = _image_axes(node)
    reason = f"mixed with its neighbours by {describe(node)}"
    passing = flow.fix(flow.values[source], images, reason)
    for other in others:
        flow.hold(flow.values[other], reason)
    if isinstance(node.meta["val"], (list, tuple)):  # the second is where the maxima were found
        return [passing, tuple(replace(item, zero=False) for item in passing)]
    return passing


@rule(aten.glu.default)
def glu(flow: Flow, node: fx.Node) -> Fields:
    """The first half of an axis times the sigmoid of the second: both halves leave together."""
    dim = argument(node, "dim") % _rank(node)
    half = concrete_shape(node)[dim]
    fields: Fields = ()
    for item in flow.values[source_of(node)]:
        ids = item.ids
        if ids.shape[dim] > 1:
            first, second = ids.narrow(dim, 0, half), ids.narrow(dim, half, half)
            flow.partition.union(first, second, f"gated by one another in {describe(node)}")
            ids = first
        fields += flow.normalized(ids, (item.axis,), item.zero)
    return fields


@rule(aten.embedding.default)
def embedding(flow: Flow, node: fx.Node) -> Fields:
    """Rows of a table: the table's columns become the last axis."""
    table, indices = argument(node, "weight"), argument(node, "indices")
    flow.hold(flow.values[indices], f"looked up by {describe(node)}")
    fields = flow.fix(flow.values[table], (0,), f"looked up by position in {describe(node)}")
    if table.op == "get_attr":
        flow.produced.add(Axis(str(table.target), 1))
    rank = _rank(node)
    columns = Operand((concrete_shape(table)[1],), tuple(replace(item, ids=item.ids[0], axis=0) for item in fields))
    return laid_along(columns, rank - 1, rank).fields


@rule(aten._weight_norm.default, aten._weight_norm_interface.default)
def weight_norm(flow: Flow, node: fx.Node) -> Any:
    """Filters over their norm: without some of their inputs they change, and those of zeros have no norm."""
    for source in tensor_arguments(node):
        flow.hold(flow.values[source], f"filters are divided by their norm in {describe(node)}")
    return [(), ()] if isinstance(node.meta["val"], (list, tuple)) else ()


def unknown(flow: Flow, node: fx.Node) -> Any:
    """An op that is not understood holds all that it reads, and says so."""
    for source in tensor_arguments(node):
        flow.hold(flow.values[source], f"op not understood: {describe(node)}")
    value = node.meta.get("val")
    return [()] * len(value) if isinstance(value, (list, tuple)) else ()


def _along_channels(flow: Flow, node: fx.Node, mixed: Sequence[int], vanish: Vanishes) -> Fields:
    """An input with one-dimensional tensors along its axis 1; nothing shrinks along the axes in `mixed`."""
    source, *tensors = tensor_arguments(node)
    value = flow.operand(source)
    rank = len(value.shape)
    fields = flow.fix(value.fields, mixed, f"normalized together by {describe(node)}")
    operands = [Operand(value.shape, fields), *(laid_along(flow.operand(tensor), 1, rank) for tensor in tensors)]
    return flow.unify(operands, value.shape, node, vanish)


def _norm_vanishes(node: fx.Node) -> Vanishes:
    """Whether scale * normal + shift is zero: its affine decides, or, without one, the normalized input."""
    names = {value: name for name, value in reversed(bound_arguments(node).items()) if isinstance(value, fx.Node)}
    across = node.target in (aten.layer_norm.default, aten.group_norm.default)  # the mean is not the channel's own

    def vanish(zero: Sequence[bool]) -> bool:
        given = dict(zip((names[tensor] for tensor in tensor_arguments(node)), zero, strict=True))
        if "weight" in given:
            return given["weight"] and given.get("bias", True)
        return given["input"] and given.get("running_mean", True) and not across

    return vanish


def _image_axes(node: fx.Node) -> range:
    """The axes behind the channel, which the name of the op counts."""
    name = str(node.target)
    found = next((count for count in (1, 2, 3) if f"{count}d" in name), 2)
    rank = len(concrete_shape(source_of(node)))
    return range(rank - found, rank)


def _rank(node: fx.Node) -> int:
    value = node.meta["val"]
    return len((value[0] if isinstance(value, (list, tuple)) else value).shape)
