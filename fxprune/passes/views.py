"""Views of views, written as one: what attention in torch's own modules spells in many steps."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxprune.calls import argument, bound_arguments, source_of

aten = torch.ops.aten
_MOVES = {aten.transpose.int, aten.permute.default, aten.unsqueeze.default, aten.squeeze.dim}
_TOGETHER = (3, 4)  # queries, keys and values; the gates of a cell
_Dims = list["int | None"]  # for each dimension of a view that of the tensor it is of, None for an inserted one


def merge_moves(graph: fx.Graph) -> bool:
    """Dimensions that are moved in several steps are moved in one; whether there were any.

    Steps are transpose and permute, unsqueeze, and squeeze of what unsqueeze inserted, as far as each is read by the
    next one alone.
    """
    ends = [node for node in graph.nodes if node.target in _MOVES and _next(node) is None]
    return sum(map(_merge_into, ends)) > 0


def unbind_selections(graph: fx.Graph) -> bool:
    """A tensor of which every one of a few indices along a dimension is selected, and nothing else is read, is unbound,
    so that its parts can have names of their own; whether any was."""
    return sum(map(_unbind, list(graph.nodes))) > 0


def _next(node: fx.Node) -> fx.Node | None:
    """The step that alone reads this one."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader if reader is not None and reader.target in _MOVES else None


def _merge_into(end: fx.Node) -> bool:
    """Put one move in the place of the longest chain of steps that ends here, where one does."""
    chain = [end]
    while (source := source_of(chain[0])).target in _MOVES and len(source.users) == 1:
        chain.insert(0, source)
    for first in range(len(chain) - 1):
        source = source_of(chain[first])
        dims = _moved(source, chain[first:])
        if dims is not None:
            return _replace(end, source, dims)
    return False


def _moved(source: fx.Node, chain: Sequence[fx.Node]) -> list[int] | None:
    """Which dimension of `source` each one of the last step's result is; None where that is more than a move."""
    dims: _Dims | None = list(range(source.meta["val"].ndim))
    for step in chain:
        dims = None if dims is None else _after(dims, step)
    found = [dim for dim in dims or () if dim is not None]
    return found if dims == found else None


def _after(dims: _Dims, step: fx.Node) -> _Dims | None:
    """The dimensions behind a step; None where it takes away one that was not inserted."""
    given = bound_arguments(step)
    if step.target is aten.permute.default:
        return [dims[dim] for dim in given["dims"]]
    if step.target is aten.transpose.int:
        return _swapped(dims, given["dim0"], given["dim1"])
    if step.target is aten.unsqueeze.default:
        place = given["dim"] % (len(dims) + 1)
        return [*dims[:place], None, *dims[place:]]
    place = given["dim"] % len(dims)
    return [*dims[:place], *dims[place + 1 :]] if dims[place] is None else None


def _swapped(dims: _Dims, first: int, second: int) -> _Dims:
    result = list(dims)
    result[first], result[second] = dims[second], dims[first]
    return result


def _replace(end: fx.Node, source: fx.Node, dims: list[int]) -> bool:
    """One view of `source` instead of `end`; the steps before it die for want of readers."""
    moved = [place for place, dim in enumerate(dims) if place != dim]
    if not moved and any(user.op == "output" for user in end.users):
        return False  # what is given back must not become an input itself
    with end.graph.inserting_before(end):
        if not moved:
            view = source
        elif len(moved) == 2:
            view = end.graph.call_function(aten.transpose.int, (source, *moved))
        else:
            view = end.graph.call_function(aten.permute.default, (source, dims))
    if moved:
        view.meta = dict(end.meta)
    end.replace_all_uses_with(view)
    end.graph.erase_node(end)
    return True


def _unbind(node: fx.Node) -> bool:
    chosen = _selections(node)
    if chosen is None:
        return False
    with node.graph.inserting_after(node):
        parts = node.graph.call_function(aten.unbind.int, (node, argument(chosen[0], "dim")))
    parts.meta = {**chosen[0].meta, "val": [user.meta["val"] for user in chosen]}
    for index, user in enumerate(chosen):
        with node.graph.inserting_before(user):
            part = node.graph.call_function(operator.getitem, (parts, index))
        part.meta = dict(user.meta)
        user.replace_all_uses_with(part)
        node.graph.erase_node(user)
    return True


def _selections(node: fx.Node) -> list[fx.Node] | None:
    """The readers of a value in the order of their indices, where they select each along one dimension once."""
    users, value = list(node.users), node.meta.get("val")
    if len(users) not in _TOGETHER or not isinstance(value, Tensor):
        return None
    if any(user.target is not aten.select.int for user in users):
        return None
    dims = {argument(user, "dim") % value.ndim for user in users}
    indices = [argument(user, "index") for user in users]
    size = value.shape[dims.pop()]
    if dims or not all(isinstance(number, int) for number in (size, *indices)):
        return None
    by_index = {index % size: user for index, user in zip(indices, users, strict=True)}
    return [by_index[index] for index in range(size)] if len(by_index) == len(users) == size else None
