"""Moves that take positions along an axis: splits, slices, selections, rolls, and reads by a constant index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calls import argument, concrete, concrete_shape, dim_argument, source_of
from fxprune.coupling.flow import Flow, rule
from fxprune.coupling.indices import constant, root_of
from fxprune.coupling.operand import Fields, support
from fxprune.errors import describe
from fxprune.types import Field

aten = torch.ops.aten


@rule(aten.chunk.default, aten.split, aten.split_with_sizes.default, aten.tensor_split, aten.narrow.default,
      aten.slice.Tensor)  # fmt: skip
def along_one_axis(flow: Flow, node: fx.Node) -> Any:
    """Splits and slices: run on the ids where they vary along the axis in question."""
    dim = dim_argument(node)
    several = isinstance(node.meta["val"], (list, tuple))
    parts: list[Fields] = [()] * (len(node.meta["val"]) if several else 1)
    for item in _cuttable(flow, node, _steps_whole(flow, node, flow.values[source_of(node)], dim), dim):
        if dim not in support(item.ids):
            parts = [(*part, item) for part in parts]
            continue
        pieces = _pieces(node, item.ids)
        parts = [part + flow.normalized(ids, (item.axis,), item.zero) for part, ids in zip(parts, pieces, strict=True)]
        if dim == item.axis and not several and len(support(item.ids)) > 1:  # every row begins at the same position
            flow.normalized(item.ids.narrow(dim, 0, _start(node, item.ids.shape[dim])), (dim,))
    return parts if several else parts[0]


def _pieces(node: fx.Node, ids: Tensor) -> list[Tensor]:
    """What a split or slice, with its own arguments, makes of ids."""
    target: Any = node.target
    args, kwargs = pytree.tree_map_only(fx.Node, concrete, (node.args[1:], node.kwargs))
    found = target(ids, *args, **kwargs)
    return [found] if isinstance(found, Tensor) else list(found)


def _cuttable(flow: Flow, node: fx.Node, fields: Fields, dim: int) -> Fields:
    """Fields of which every piece can lose something along `dim`; where a row is cut to one unit, rows leave whole."""
    left: Fields = ()
    for item in fields:
        if item.axis == dim and len(support(item.ids)) > 1:
            pieces = [flow.partition.canonical(ids) for ids in _pieces(node, item.ids)]
            if any(ids.numel() and bool((ids == ids.narrow(dim, 0, 1)).all()) for ids in pieces):
                left += flow.fix((item,), (dim,), f"cut to one position by {describe(node)}")
                continue
        left += (item,)
    return left


def _steps_whole(flow: Flow, node: fx.Node, fields: Fields, dim: int) -> Fields:
    """Fields where all positions of one step leave together, so that a slice with a step stays as it is."""
    step = argument(node, "step", 1)
    if step == 1:
        return fields
    size = concrete_shape(source_of(node))[dim]
    left: list[Field] = []
    for item in fields:
        whole = size % step == 0 and argument(node, "end") >= size and 0 <= (argument(node, "start") or 0) < step
        if dim != item.axis:
            left.append(item)
        elif not whole:
            flow.hold((item,), f"read with a step by {describe(node)}")
        else:
            rows = item.ids.unflatten(dim, (size // step, step))
            flow.partition.union(rows, rows.narrow(dim + 1, 0, 1), f"read with a step by {describe(node)}")
            left.append(item)
    return tuple(left)


def _start(node: fx.Node, size: int) -> int:
    start = argument(node, "start", 0)
    return slice(concrete(start) if start is not None else 0, None).indices(size)[0]


@rule(aten.flip.default)
def flip(flow: Flow, node: fx.Node) -> Fields:
    """Reversal: run on the ids."""
    found: Fields = ()
    for item in flow.values[source_of(node)]:
        rank = item.ids.ndim
        dims = [dim for dim in argument(node, "dims") if dim % rank in support(item.ids)]
        found += flow.normalized(item.ids.flip(dims), (item.axis,), item.zero)
    return found


@rule(aten.roll.default)
def roll(flow: Flow, node: fx.Node) -> Fields:
    """Rotation along axes: run on the ids; along a shrinking axis every row loses the same positions."""
    fields: Fields = flow.values[source_of(node)]
    shifts, dims = argument(node, "shifts"), argument(node, "dims")
    if not dims:
        flow.hold(fields, f"rotated as one row by {describe(node)}")
        return ()
    dims = [dim % len(concrete_shape(node)) for dim in dims]
    found: Fields = ()
    for item in fields:
        if item.axis in dims:
            others = [dim for dim in support(item.ids) if dim != item.axis]
            whole = flow.fix((item,), others, f"rotated by {describe(node)}")
        else:
            whole = (item,)
        for one in whole:
            turned = [(shift, dim) for shift, dim in zip(shifts, dims, strict=True) if dim in support(one.ids)]
            ids = one.ids.roll([shift for shift, _ in turned], [dim for _, dim in turned]) if turned else one.ids
            found += flow.normalized(ids, (one.axis,), one.zero)
    return found


@rule(aten.select.int)
def select(flow: Flow, node: fx.Node) -> Fields:
    """One position of an axis: what lies there stays, if the axis is the one that shrinks."""
    dim = dim_argument(node)
    return _selected(flow, node, flow.values[source_of(node)], dim, [argument(node, "index")])[0]


@rule(aten.unbind.int)
def unbind(flow: Flow, node: fx.Node) -> list[Fields]:
    """Every position of an axis by itself."""
    dim = dim_argument(node)
    return _selected(flow, node, flow.values[source_of(node)], dim, range(len(node.meta["val"])))


def _selected(flow: Flow, node: fx.Node, fields: Fields, dim: int, positions: Sequence[int]) -> list[Fields]:
    reason = f"one fixed position of it is read by {describe(node)}"
    outputs: list[Fields] = [()] * len(positions)
    along = tuple(item for item in fields if item.axis == dim)
    for item in along:
        if len(support(item.ids)) == 1:
            for position in positions:
                flow.partition.hold(item.ids.select(dim, position), reason)
    nested = tuple(item for item in along if len(support(item.ids)) > 1)
    for item in (*(item for item in fields if item.axis != dim), *flow.fix(nested, (dim,), reason)):
        axis = item.axis - (item.axis > dim)
        for index, position in enumerate(positions):
            ids = item.ids.select(dim, position if item.ids.shape[dim] > 1 else 0)
            outputs[index] += flow.normalized(ids, (axis,), item.zero)
    return outputs


@rule(aten.index_select.default, aten.gather.default)
def index_select(flow: Flow, node: fx.Node) -> Fields:
    """Reads at an index along one axis: a constant one may run along a shrinking axis."""
    dim, index = dim_argument(node), argument(node, "index")
    fields = flow.values[source_of(node)]
    if node.target is aten.gather.default:
        before, after = concrete_shape(source_of(node)), concrete_shape(node)
        shorter = [axis for axis in range(len(after)) if axis != dim and before[axis] != after[axis]]
        fields = flow.fix(fields, shorter, f"read in part by {describe(node)}")
    return taken(flow, node, fields, dim, index)


@rule(aten.index.Tensor)
def index(flow: Flow, node: fx.Node) -> Fields:
    """`x[:, index]`: indexed axes become those of the index; a lone constant index may run along a shrinking one."""
    source, indices = source_of(node), argument(node, "indices")
    fields: Fields = flow.values[source]
    indexed = [dim for dim, entry in enumerate(indices) if entry is not None]
    ranks = [len(concrete_shape(indices[dim])) for dim in indexed]
    if len(indexed) == 1 and ranks == [1]:
        return taken(flow, node, fields, indexed[0], indices[indexed[0]])
    for dim in indexed:
        flow.hold(flow.values[indices[dim]], f"read as an index by {describe(node)}")
    reason = f"read at an index by {describe(node)}"
    if any(indices[dim].meta["val"].dtype is torch.bool for dim in indexed):
        flow.hold(fields, reason)
        return ()
    rank, at = max(ranks), indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    found = []
    for item in flow.fix(fields, indexed, reason):
        shape = [size for dim, size in enumerate(item.ids.shape) if dim not in indexed]
        rest = [dim for dim in range(item.ids.ndim) if dim not in indexed]
        before = rest.index(item.axis)
        shape[at:at] = [1] * rank
        found.append(replace(item, ids=item.ids.reshape(shape), axis=before + rank * (before >= at)))
    return tuple(found)


def taken(flow: Flow, node: fx.Node, fields: Fields, dim: int, index: fx.Node) -> Fields:
    """Fields of what is read at `index`, which has one axis of its own, along axis `dim`."""
    positions = _one_row(constant(index), dim)
    follows = str(root_of(index).target) in flow.indices
    entries: Fields = flow.values[index] if follows else ()
    flow.hold(() if follows else flow.values[index], f"read as an index by {describe(node)}")
    reason = f"read at an index by {describe(node)}"
    found: Fields = ()
    for item in fields:
        if dim not in support(item.ids):
            found += (item,)
        elif positions is None or (item.axis == dim and not entries):
            found += flow.fix((item,), (dim,), reason)
        elif item.axis != dim:
            found += flow.normalized(item.ids.index_select(dim, positions), (item.axis,), item.zero)
        else:
            others = [axis for axis in support(item.ids) if axis != dim]
            for whole in flow.fix((item,), others, reason):
                read = whole.ids.index_select(dim, positions)
                along = [-1 if axis == dim else 1 for axis in range(read.ndim)]
                flow.partition.union(read, entries[0].ids.reshape(along), reason)
                found += flow.normalized(read, (dim,), item.zero)
    if not any(item.axis == dim for item in found):
        flow.hold(entries, f"read as an index by {describe(node)}")
    return found


def _one_row(index: Tensor | None, dim: int) -> Tensor | None:
    """An index that says the same in every row, as that row."""
    if index is None or index.dtype is torch.bool:
        return None
    if index.ndim == 1:
        return index.detach().cpu()
    lines = index.detach().cpu().movedim(dim, -1).flatten(0, -2)
    return lines[0] if bool((lines == lines[0]).all()) else None
