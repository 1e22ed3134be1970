"""The three families on which every rule is built: move, unify, reduce. Rules say which of them an op is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxprune.coupling.partition import Partition
from fxprune.errors import describe
from fxprune.types import Axis, Field

Fields = tuple[Field, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """A tensor as the analysis sees it: its shape and the fields on it."""

    shape: Shape
    fields: Fields

    def on(self, axis: int) -> Field | None:
        """The field that shrinks `axis`."""
        return next((item for item in self.fields if item.axis == axis), None)


@dataclass
class Flow:
    """One pass over a graph: reads the partition as it was, records what the ops join and hold."""

    partition: Partition
    values: dict[fx.Node, Any] = field(default_factory=dict)
    constrained: list[Field] = field(default_factory=list)
    consumed: set[Axis] = field(default_factory=set)
    statistics: list[str] = field(default_factory=list)
    padding: dict[tuple[fx.Node, int, int], Tensor] = field(default_factory=dict)

    # reading -----------------------------------------------------------------------------------------------------

    def operand(self, node: fx.Node) -> Operand:
        """The tensor value of `node`."""
        return Operand(concrete_shape(node), self.values[node])

    def normalized(self, ids: Tensor, axes: Sequence[int]) -> Fields:
        """A field that shrinks the innermost varying one of `axes`, of size 1 where it does not vary.

        Nothing where it is permanent throughout. Where it varies along more than one axis, its rows must keep equally
        many units, which is noted as a constraint.
        """
        ids = self.partition.canonical(ids)
        for dim in support(ids):
            if torch.equal(ids, ids.narrow(dim, 0, 1).expand_as(ids)):
                ids = ids.narrow(dim, 0, 1)
        if not bool(ids.any()):
            return ()
        varying = support(ids)
        if not varying:  # one unit is the whole tensor: it cannot leave
            self.partition.hold(ids, "the whole tensor is one unit")
            return ()
        made = Field(ids, max((dim for dim in varying if dim in axes), default=varying[-1]))
        if len(varying) > 1:
            self.constrained.append(made)
        return (made,)

    # move --------------------------------------------------------------------------------------------------------

    def reshape(self, fields: Fields, before: Shape, after: Shape, node: fx.Node) -> Fields:
        """Fields after a row-major reshape: the ids are reshaped themselves."""
        moved: list[Field] = []
        pairs = list(matched_dims(before, after))
        for item in fields:
            ids = self._joined_inside_merge(item, pairs, node)
            moved += self._reshaped(ids, item.axis, before, after, pairs)
        return tuple(moved)

    def _joined_inside_merge(self, item: Field, pairs: Sequence[tuple[range, range]], node: fx.Node) -> Tensor:
        """Rows that a merge would interleave lose the same positions: join them (a shuffle crosses the rows)."""
        ids = item.ids
        for sources, _ in pairs:
            if item.axis in sources:
                for dim in range(item.axis + 1, sources.stop):
                    ids = self.join_along(ids, dim, node)
        return ids

    def _reshaped(
        self, ids: Tensor, axis: int, before: Shape, after: Shape, pairs: Sequence[tuple[range, range]]
    ) -> Fields:
        full, new = list(ids.shape), [1] * len(after)
        home: Sequence[int] = ()
        for sources, targets in pairs:
            if any(ids.shape[dim] > 1 for dim in sources):
                for dim in sources:
                    full[dim] = before[dim]
                for dim in targets:
                    new[dim] = after[dim]
            if axis in sources:
                home = targets
        return self.normalized(ids.expand(full).reshape(new), home)

    def join_along(self, ids: Tensor, dim: int, node: fx.Node) -> Tensor:
        """Join every row along `dim`, and keep one."""
        first = ids.narrow(dim, 0, 1)
        self.partition.union(ids, first, f"rows that must lose the same positions in {describe(node)}")
        return first

    # unify -------------------------------------------------------------------------------------------------------

    def unify(self, operands: Sequence[Operand], shape: Shape, node: fx.Node) -> Fields:
        """Fields of the elementwise combination of broadcast operands, of shape `shape`."""
        aligned = [_aligned(operand, len(shape)) for operand in operands]
        every = [(index, item) for index, operand in enumerate(aligned) for item in operand.fields]
        reason = f"combined with an axis that cannot shrink in {describe(node)}"
        for position, (index, item) in enumerate(every):
            for other_index, other in every[position + 1 :]:
                if index != other_index and (item.axis in support(other.ids) or other.axis in support(item.ids)):
                    self.partition.union(item.ids, other.ids, reason)
            for operand in aligned:
                if operand.shape[item.axis] > 1 and not any(item.axis in support(f.ids) for f in operand.fields):
                    self.partition.hold(item.ids, reason)
        widest: dict[int, Field] = {}
        for _, item in every:
            if item.axis not in widest or item.ids.numel() > widest[item.axis].ids.numel():
                widest[item.axis] = item
        return tuple(widest.values())

    # reduce ------------------------------------------------------------------------------------------------------

    def reduce(self, fields: Fields, dims: Sequence[int], keepdim: bool, node: fx.Node) -> Fields:
        """Fields after a sum over `dims`: one within them ends, one partly inside is joined along them."""
        left: list[Field] = []
        for item in fields:
            if item.axis in dims:
                continue
            ids = item.ids
            for dim in dims:
                ids = self.join_along(ids, dim, node)
            axis = item.axis
            if not keepdim:
                ids = ids.reshape([size for dim, size in enumerate(ids.shape) if dim not in dims])
                axis -= sum(dim < item.axis for dim in dims)
            left += self.normalized(ids, (axis,))
        return tuple(left)

    def hold(self, fields: Fields, reason: str) -> None:
        """These fields never shrink."""
        for item in fields:
            self.partition.hold(item.ids, reason)


Rule = Callable[[Flow, fx.Node], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register how an op moves, unifies or reduces fields. Packets stand for all their overloads."""

    def register(function: Rule) -> Rule:
        for target in targets:
            overloads = (
                [getattr(target, name) for name in target.overloads()] if hasattr(target, "overloads") else [target]
            )
            RULES.update(dict.fromkeys(overloads, function))
        return function

    return register


@rule(operator.getitem)
def getitem(flow: Flow, node: fx.Node) -> Any:
    """One output of an op with several."""
    index: Any = node.args[1]
    return flow.values[source_of(node)][index]


def support(ids: Tensor) -> tuple[int, ...]:
    """The axes along which ids vary."""
    return tuple(dim for dim, size in enumerate(ids.shape) if size > 1)


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Each argument of a call of an operator by its schema name, defaults filled in; values are as in the graph."""
    assert isinstance(node.target, OpOverload)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


_REQUIRED = object()


def argument(node: fx.Node, name: str, missing: Any = _REQUIRED) -> Any:
    """The argument of an ATen call by its name in the schema, given or default; `missing` where the op has none."""
    bound = bound_arguments(node)
    if name not in bound and missing is _REQUIRED:
        raise KeyError(f"{node.target} has no argument {name}")
    return bound.get(name, missing)


def source_of(node: fx.Node) -> fx.Node:
    """The first argument of a call, which must be a node."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def concrete(size: Any) -> int:
    """A size as a number: for a symbolic one, that of the example."""
    return size if isinstance(size, int) else int(size.node.hint)


def concrete_shape(node: fx.Node) -> Shape:
    """The shape of a node's value on the example."""
    return tuple(concrete(size) for size in node.meta["val"].shape)


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments of a call that are tensors, those inside lists included."""
    return [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]


def broadcast_shape(shapes: Iterable[Sequence[int]]) -> Shape:
    """The shape that operands of these shapes broadcast to."""
    return tuple(torch.broadcast_shapes(*shapes))


def matched_dims(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """The finest pairs of consecutive dimensions that hold the same elements in a row-major reshape."""
    i = j = 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i += i < len(before) and (left == right or left == 1 or right != 1)
        j += j < len(after) and (left == right or right == 1 or left != 1)
        while left != right and 1 not in (left, right):
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        yield range(start_i, i), range(start_j, j)


def _aligned(operand: Operand, rank: int) -> Operand:
    """The operand with leading dimensions of size 1 up to `rank`."""
    extra = rank - len(operand.shape)
    fields = tuple(Field(item.ids[(None,) * extra], item.axis + extra) for item in operand.fields)
    return Operand((1,) * extra + operand.shape, fields)
