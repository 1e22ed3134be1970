"""Moves that put tensors beside one another: concatenation, padding, repetition, and constants of a given size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calls import argument, concrete, concrete_shape, dim_argument, source_of
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.operand import Fields, Operand, broadcast_shape, support
from fxprune.errors import describe
from fxprune.types import Field

aten = torch.ops.aten


@rule(aten.cat.default, aten.concat.default)
def concatenate(flow: Flow, node: fx.Node) -> Fields:
    """Concatenation: ids are concatenated; an operand without a field on an axis is permanent there."""
    operands = [flow.operand(source) for source in argument(node, "tensors") if len(concrete_shape(source)) > 1
                or concrete_shape(source) != (0,)]  # fmt: skip
    return _concatenated(flow, node, operands, argument(node, "dim") % len(concrete_shape(node)))


@rule(aten.stack.default)
def stack(flow: Flow, node: fx.Node) -> Fields:
    """Concatenation along a new axis."""
    dim = argument(node, "dim") % len(concrete_shape(node))
    operands = []
    for source in argument(node, "tensors"):
        shape = list(concrete_shape(source))
        fields = (
            replace(item, ids=item.ids.unsqueeze(dim), axis=item.axis + (item.axis >= dim))
            for item in flow.values[source]
        )
        operands.append(Operand((*shape[:dim], 1, *shape[dim:]), tuple(fields)))
    return _concatenated(flow, node, operands, dim)


def _concatenated(flow: Flow, node: fx.Node, operands: Sequence[Operand], dim: int) -> Fields:
    rank = len(operands[0].shape)
    fields: Fields = ()
    for axis in sorted({item.axis for operand in operands for item in operand.fields}):
        pieces = [operand.on(axis) for operand in operands]
        if axis != dim and None in pieces:  # all pieces are equally long there
            flow.hold(
                tuple(piece for piece in pieces if piece), f"beside an axis that cannot shrink in {describe(node)}"
            )
            continue
        ids = [piece.ids if piece else torch.zeros((1,) * rank, dtype=torch.int64) for piece in pieces]
        common = broadcast_shape([_without(piece.shape, dim) for piece in ids])
        full = [
            piece.expand(*common[:dim], operand.shape[dim], *common[dim + 1 :])
            for piece, operand in zip(ids, operands, strict=True)
        ]
        fields += flow.normalized(torch.cat(full, dim), (axis,), all(piece.zero for piece in pieces if piece))
    return fields


@rule(aten.slice_scatter.default)
def slice_scatter(flow: Flow, node: fx.Node) -> Fields:
    """A tensor in which a slice is replaced."""
    source = flow.operand(source_of(node))
    dim, size = dim_argument(node), source.shape[dim_argument(node)]
    start, end = (argument(node, name) for name in ("start", "end"))
    positions = torch.arange(size)[slice(start, end)][:: argument(node, "step")]
    return _overwritten(flow, node, source, flow.operand(argument(node, "src")), dim, positions)


@rule(aten.select_scatter.default)
def select_scatter(flow: Flow, node: fx.Node) -> Fields:
    """A tensor in which one position of an axis is replaced: it stays where it is."""
    source, written, dim = flow.operand(source_of(node)), flow.operand(argument(node, "src")), dim_argument(node)
    reason = f"one fixed position of it is written by {describe(node)}"
    fields = flow.fix(tuple(item for item in source.fields if item.axis == dim), (dim,), reason)
    source = Operand(source.shape, fields + tuple(item for item in source.fields if item.axis != dim))
    rows = (replace(item, ids=item.ids.unsqueeze(dim), axis=item.axis + (item.axis >= dim)) for item in written.fields)
    written = Operand((*source.shape[:dim], 1, *source.shape[dim + 1 :]), tuple(rows))
    return _overwritten(flow, node, source, written, dim, torch.tensor([argument(node, "index") % source.shape[dim]]))


def _overwritten(flow: Flow, node: fx.Node, source: Operand, written: Operand, dim: int, positions: Tensor) -> Fields:
    """The fields of `source`, unified at `positions` of `dim` with those of what is written there."""
    fields: Fields = ()
    reason = f"overwritten by {describe(node)}"
    for item in source.fields:
        there = item.ids.index_select(dim, positions) if item.ids.shape[dim] > 1 else item.ids
        other = written.on(item.axis)
        flow.partition.union(there, torch.zeros_like(there) if other is None else other.ids, reason)
        fields += (replace(item, zero=item.zero and other is not None and other.zero),)
    lost = tuple(item for item in written.fields if source.on(item.axis) is None)
    flow.hold(lost, reason)
    return fields


@rule(aten.expand.default)
def expand(flow: Flow, node: fx.Node) -> Fields:
    """Expansion: new axes do not vary, and are as wide as what they meet."""
    source = source_of(node)
    extra = len(concrete_shape(node)) - len(concrete_shape(source))
    fields: Fields = tuple(
        replace(item, ids=item.ids[(None,) * extra], axis=item.axis + extra) for item in flow.values[source]
    )
    before = (1,) * extra + concrete_shape(source)
    return fields + _virtual(flow, node, [axis for axis, size in enumerate(before) if size == 1], False)


@rule(aten.expand_as.default)
def expand_as(flow: Flow, node: fx.Node) -> Fields:
    """Expansion to the shape of another tensor, whose fields decide; the values are those of the first."""
    operands = [flow.operand(source_of(node)), flow.operand(argument(node, "other"))]
    return flow.unify(operands, concrete_shape(node), node, lambda zero: zero[0])


@rule(aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default, aten.new_ones.default,
      aten.new_full.default)  # fmt: skip
def constants(flow: Flow, node: fx.Node) -> Fields:
    """A tensor of equal numbers is as wide as what it meets."""
    zero = "zeros" in str(node.target) or argument(node, "fill_value", None) == 0
    return _virtual(flow, node, range(len(concrete_shape(node))), zero)


def _virtual(flow: Flow, node: fx.Node, axes: Sequence[int], zero: bool) -> Fields:
    """Units of the call's own along those of `axes` that have a literal size."""
    fields: Fields = ()
    shape = node.meta["val"].shape
    for axis in axes:
        if isinstance(shape[axis], int) and shape[axis] > 1:
            along = [-1 if dim == axis else 1 for dim in range(len(shape))]
            fields += flow.normalized(flow.virtual_units(shape[axis], node, axis).reshape(along), (axis,), zero)
    return fields


@rule(aten.repeat.default, aten.tile.default)
def repeat(flow: Flow, node: fx.Node) -> Fields:
    """Repetition: ids are repeated; a lone position that is repeated makes units of its own."""
    source, counts = source_of(node), [concrete(count) for count in node.args[1]]  # type: ignore[union-attr]
    rank = len(concrete_shape(node))
    counts = [1] * (rank - len(counts)) + counts
    before = (1,) * (rank - len(concrete_shape(source))) + concrete_shape(source)
    fields: Fields = ()
    for item in flow.values[source]:
        extra = rank - item.ids.ndim
        ids = item.ids[(None,) * extra]
        ids = ids.repeat([count if ids.shape[dim] > 1 else 1 for dim, count in enumerate(counts)])
        fields += flow.normalized(ids, (item.axis + extra,), item.zero)
    return fields + _virtual(flow, node, [axis for axis, size in enumerate(before) if size == 1], False)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(flow: Flow, node: fx.Node) -> Fields:
    """Each position several times in a row."""
    fields: Fields = flow.values[source_of(node)]
    if argument(node, "dim") is None:
        flow.hold(fields, f"repeated as one row by {describe(node)}")
        return ()
    dim, count = dim_argument(node), concrete(argument(node, "repeats"))
    found: Fields = ()
    for item in fields:
        ids = item.ids.repeat_interleave(count, dim) if dim in support(item.ids) else item.ids
        found += flow.normalized(ids, (item.axis,), item.zero)
    return found


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(flow: Flow, node: fx.Node) -> Fields:
    """Padding: constants beside units are units themselves, which leave together with whatever they are added to."""
    source, amounts = source_of(node), argument(node, "pad")
    rank = len(concrete_shape(source))
    by_dim = {rank - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    constant = node.target is not aten.pad.default or argument(node, "mode") == "constant"
    zero = not argument(node, "value", 0)
    fields: Fields = ()
    for item in flow.values[source]:
        padded = [dim for dim in support(item.ids) if any(by_dim.get(dim, (0, 0)))]
        around = any(any(by_dim.get(dim, (0, 0))) for dim in range(rank))
        if padded and (
            not constant or padded != [item.axis] or len(support(item.ids)) > 1 or min(by_dim[item.axis]) < 0
        ):
            reason = f"padded with its own values, or across rows, by {describe(node)}"
            fields += flow.fix((item,), padded, reason)
        elif padded:
            ids = _padded(flow, node, item, by_dim[item.axis])
            fields += flow.normalized(ids, (item.axis,), item.zero and zero)
        else:
            fields += (replace(item, zero=item.zero and (zero or not constant or not around)),)
    return fields


def _padded(flow: Flow, node: fx.Node, item: Field, amounts: Sequence[Any]) -> Tensor:
    """The ids between units of the constants."""
    sides = []
    for side, amount in enumerate(amounts):
        shape = [1] * item.ids.ndim
        shape[item.axis] = amount
        sides.append(flow.virtual_units(amount, node, item.axis, side).reshape(shape))
    return torch.cat([sides[0], item.ids, sides[1]], item.axis)


def _without(shape: Sequence[int], dim: int) -> list[int]:
    return [1 if index == dim else size for index, size in enumerate(shape)]
