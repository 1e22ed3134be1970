"""Moves: ops that only rearrange elements. The op itself is run on the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.coupling.flow import Fields, Flow, argument, broadcast_shape, concrete_shape, rule, source_of, support
from fxprune.errors import describe
from fxprune.types import Field

aten = torch.ops.aten


@rule(aten.view.default, aten.reshape, aten._unsafe_view, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze,
      aten.unsqueeze)  # fmt: skip
def reshape(flow: Flow, node: fx.Node) -> Fields:
    """Row-major reshapes."""
    source = flow.operand(source_of(node))
    return flow.reshape(source.fields, source.shape, concrete_shape(node), node)


@rule(aten.permute, aten.transpose.int, aten.t, aten.numpy_T, aten.movedim, aten.swapaxes.default)
def permute(flow: Flow, node: fx.Node) -> Fields:
    """Axis permutations: where each axis went is read off a tensor of distinct sizes."""
    source = source_of(node)
    fields: Fields = flow.values[source]
    rank = len(concrete_shape(source))
    probe = torch.empty(tuple(range(2, rank + 2)), device="meta")
    went_to = [size - 2 for size in _run(node, probe).shape]
    moved = (flow.normalized(item.ids.permute(went_to), (went_to.index(item.axis),)) for item in fields)
    return tuple(item for found in moved for item in found)


@rule(aten.chunk.default, aten.split, aten.split_with_sizes.default, aten.slice.Tensor, aten.narrow.default,
      aten.flip.default)  # fmt: skip
def along_one_axis(flow: Flow, node: fx.Node) -> Any:
    """Splits, slices and flips: run on ids that are full along the axis in question."""
    fields: Fields = flow.values[source_of(node)]
    dims = argument(node, "dims") if node.target is aten.flip.default else [argument(node, "dim")]
    shape = concrete_shape(source_of(node))
    dims = [dim % len(shape) for dim in dims]
    several = isinstance(node.meta["val"], (list, tuple))
    parts: list[Fields] = [()] * (len(node.meta["val"]) if several else 1)
    for item in fields:
        if not set(dims) & set(support(item.ids)):
            parts = [(*part, item) for part in parts]
            continue
        if node.target is aten.slice.Tensor and argument(node, "step") != 1 and item.axis in dims:
            flow.hold((item,), f"read with a step by {describe(node)}")
            continue
        outputs = _run(node, item.ids)
        ids = list(outputs) if several else [outputs]
        parts = [part + flow.normalized(one, (item.axis,)) for part, one in zip(parts, ids, strict=True)]
    return parts if several else parts[0]


@rule(aten.cat.default, aten.concat.default)
def concatenate(flow: Flow, node: fx.Node) -> Fields:
    """Concatenation: ids are concatenated; an operand without a field on an axis is permanent there."""
    operands = [flow.operand(source) for source in argument(node, "tensors")]
    rank = len(operands[0].shape)
    dim = argument(node, "dim") % rank
    fields: Fields = ()
    for axis in sorted({item.axis for operand in operands for item in operand.fields}):
        pieces = [operand.on(axis) for operand in operands]
        ids = [piece.ids if piece else torch.zeros((1,) * rank, dtype=torch.int64) for piece in pieces]
        common = broadcast_shape([_without(piece.shape, dim) for piece in ids])
        full = [
            piece.expand(*common[:dim], operand.shape[dim], *common[dim + 1 :])
            for piece, operand in zip(ids, operands, strict=True)
        ]
        fields += flow.normalized(torch.cat(full, dim), (axis,))
    return fields


@rule(aten.expand.default, aten.expand_as.default)
def expand(flow: Flow, node: fx.Node) -> Fields:
    """Expansion: new axes do not vary."""
    fields: Fields = flow.values[source_of(node)]
    extra = len(node.meta["val"].shape) - len(concrete_shape(source_of(node)))
    return tuple(Field(item.ids[(None,) * extra], item.axis + extra) for item in fields)


@rule(aten.select.int)
def select(flow: Flow, node: fx.Node) -> Fields:
    """One position of an axis: the position is baked, so what lies there stays."""
    source = source_of(node)
    dim = argument(node, "dim") % len(concrete_shape(source))
    fields: Fields = ()
    for item in flow.values[source]:
        if dim not in support(item.ids):
            ids, axis = item.ids.squeeze(dim), item.axis - (item.axis > dim)
            fields += (Field(ids, axis),)
        else:
            flow.hold((item,), f"one fixed position of it is read by {describe(node)}")
    return fields


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(flow: Flow, node: fx.Node) -> Fields:
    """Padding: constants beside units are units themselves, which leave together with whatever they are added to."""
    source, amounts = source_of(node), argument(node, "pad")
    rank = len(concrete_shape(source))
    by_dim = {rank - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    constant = node.target is not aten.pad.default or argument(node, "mode") == "constant"
    fields: Fields = ()
    for item in flow.values[source]:
        padded = [dim for dim in support(item.ids) if any(by_dim.get(dim, (0, 0)))]
        if padded and (
            not constant or padded != [item.axis] or len(support(item.ids)) > 1 or min(by_dim[item.axis]) < 0
        ):
            flow.hold((item,), f"padded with its own values, or across rows, by {describe(node)}")
        elif padded:
            fields += flow.normalized(_padded(flow, node, item, by_dim[item.axis]), (item.axis,))
        else:
            fields += (item,)
    return fields


def _run(node: fx.Node, ids: Tensor) -> Any:
    """The op of a call, with its other arguments, on ids."""
    target: Any = node.target
    return target(ids, *node.args[1:], **node.kwargs)


def _padded(flow: Flow, node: fx.Node, item: Field, amounts: Sequence[int]) -> Tensor:
    """The ids between fresh ones for the constants; the same fresh ones in every pass."""
    sides = []
    for side, amount in enumerate(amounts):
        key = (node, item.axis, side)
        if key not in flow.padding:
            flow.padding[key] = flow.partition.fresh(amount)
        shape = [1] * item.ids.ndim
        shape[item.axis] = amount
        sides.append(flow.padding[key].reshape(shape))
    return torch.cat([sides[0], item.ids, sides[1]], item.axis)


def _without(shape: Sequence[int], dim: int) -> list[int]:
    return [1 if index == dim else size for index, size in enumerate(shape)]
