"""The three families on which every rule is built: move, unify, reduce. Rules say which of them an op is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from fxprune.calls import Shape, concrete_shape, source_of
from fxprune.coupling.operand import Fields, Operand, support, with_rank
from fxprune.coupling.partition import Partition
from fxprune.errors import describe
from fxprune.types import Axis, Field

Vanishes = Callable[[Sequence[bool]], bool]


class Conflict(NamedTuple):
    """Two fields that meet where each would shrink another axis; `coarse` varies along fewer."""

    coarse: Field
    fine: Field
    reason: str


@dataclass
class Flow:
    """One pass over a graph: reads the partition as it was, records what the ops join and hold.

    values: the fields on the value of each node so far.
    heads: whether attention loses whole heads, and not dimensions of all heads.
    whole: fields that whole heads were made of, with the axes inside a head.
    finest: whether of fields that are joined the widest is handed on: to look where heads are before joining anything.
    constrained: fields whose rows must keep equally many units.
    conflicts: what could not be unified yet.
    consumed, produced: the axes of parameters that contractions sum over, and those that they leave.
    statistics: nodes that normalise over an axis that can shrink.
    virtual: units of constants, which leave with whatever they are combined with; the same in every pass.
    activations: the nodes that depend on an input.
    indices: names of the tensors that one call reads as an index along one axis, and nothing else.
    """

    partition: Partition
    values: dict[fx.Node, Any] = field(default_factory=dict)
    heads: bool = False
    whole: list[tuple[Field, Sequence[int]]] = field(default_factory=list)
    finest: bool = False
    constrained: list[Field] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    consumed: set[Axis] = field(default_factory=set)
    produced: set[Axis] = field(default_factory=set)
    statistics: list[str] = field(default_factory=list)
    virtual: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    activations: frozenset[fx.Node] = frozenset()
    indices: frozenset[str] = frozenset()

    # reading -----------------------------------------------------------------------------------------------------

    def operand(self, node: fx.Node) -> Operand:
        """The tensor value of `node`."""
        return Operand(concrete_shape(node), self.values[node])

    def normalized(self, ids: Tensor, axes: Sequence[int], zero: bool = True) -> Fields:
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
            self.partition.hold(ids, "without it a tensor would have no entries")
            return ()
        made = Field(ids, max((dim for dim in varying if dim in axes), default=varying[-1]), zero)
        if len(varying) > 1:
            self.constrained.append(made)
        return (made,)

    def virtual_units(self, count: int, *key: Any) -> Tensor:
        """Units for `count` equal entries of a constant: whatever meets them decides whether they leave."""
        if key not in self.virtual:
            self.virtual[key] = self.partition.fresh(count)
        return self.virtual[key]

    # move --------------------------------------------------------------------------------------------------------

    def reshape(self, fields: Fields, before: Shape, after: Shape, node: fx.Node) -> Fields:
        """Fields after a row-major reshape: the ids are reshaped themselves."""
        moved: list[Field] = []
        pairs = list(matched_dims(before, after))
        for item in fields:
            ids = self._joined_inside_merge(item, pairs, node)
            moved += self._reshaped(replace(item, ids=ids), before, after, pairs)
        return self.one_an_axis(moved, node)

    def one_an_axis(self, fields: Sequence[Field], node: fx.Node) -> Fields:
        """The widest field of each axis; where a merge lays two on one, the other one cannot shrink."""
        widest: dict[int, Field] = {}
        for item in sorted(fields, key=lambda item: -item.ids.numel()):
            if widest.setdefault(item.axis, item) is not item:
                self.partition.hold(item.ids, f"merged with another axis that shrinks by {describe(node)}")
        return tuple(widest.values())

    def _joined_inside_merge(self, item: Field, pairs: Sequence[tuple[range, range]], node: fx.Node) -> Tensor:
        """Rows that a merge would interleave lose the same positions: join them (a shuffle crosses the rows)."""
        ids = item.ids
        for sources, _ in pairs:
            if item.axis in sources:
                for dim in range(item.axis + 1, sources.stop):
                    ids = self.join_along(ids, dim, node)
        return ids

    def _reshaped(self, item: Field, before: Shape, after: Shape, pairs: Sequence[tuple[range, range]]) -> Fields:
        ids, full, new = item.ids, list(item.ids.shape), [1] * len(after)
        home: Sequence[int] = ()
        for sources, targets in pairs:
            if any(ids.shape[dim] > 1 for dim in sources):
                for dim in sources:
                    full[dim] = before[dim]
                for dim in targets:
                    new[dim] = after[dim]
            if item.axis in sources:
                home = targets
        return self.normalized(ids.expand(full).reshape(new), home, item.zero)

    def permute(self, fields: Fields, order: Sequence[int]) -> Fields:
        """Fields after a permutation: axis i of the result was axis order[i]."""
        moved = (self.normalized(item.ids.permute(*order), (order.index(item.axis),), item.zero) for item in fields)
        return tuple(item for found in moved for item in found)

    def join_along(self, ids: Tensor, dim: int, node: fx.Node) -> Tensor:
        """Join every row along `dim`, and keep one."""
        first = ids.narrow(dim, 0, 1)
        if ids.shape[dim] > 1:
            self.partition.union(ids, first, f"rows that must lose the same positions in {describe(node)}")
        return first

    # unify -------------------------------------------------------------------------------------------------------

    def unify(self, operands: Sequence[Operand], shape: Shape, node: fx.Node, vanishes: Vanishes = all) -> Fields:
        """Fields of the elementwise combination of broadcast operands, of shape `shape`.

        vanishes: whether the result is zero where it is known of each operand whether it is.
        """
        reason = f"combined with an axis that cannot shrink in {describe(node)}"
        aligned = self._shrinking_together([with_rank(operand, len(shape)) for operand in operands], node, reason)
        every = [(index, item) for index, operand in enumerate(aligned) for item in operand.fields]
        nested = set()
        for position, (index, item) in enumerate(every):
            for other_index, other in every[position + 1 :]:
                if index != other_index:
                    nested.add(self._meet(item, other, reason))
        joined: dict[int, Field] = {}  # of those that are now one, the smallest says it all
        left = [item for _, item in every if item not in nested]
        for item in sorted(left, key=lambda item: item.ids.numel(), reverse=self.finest):
            joined.setdefault(item.axis, item)
        zero = {
            axis: vanishes([any(item.axis == axis and item.zero for item in operand.fields) for operand in aligned])
            for axis in joined
        }
        return tuple(replace(item, zero=zero[axis]) for axis, item in joined.items())

    def _shrinking_together(self, operands: Sequence[Operand], node: fx.Node, reason: str) -> list[Operand]:
        """The operands with fields only on axes along which all others can get shorter, or need not."""
        found = []
        for operand in operands:
            fields: Fields = ()
            for item in operand.fields:
                free = all(
                    other.shape[item.axis] == 1 or any(item.axis in support(one.ids) for one in other.fields)
                    for other in operands
                )
                fields += (item,) if free else self.fix((item,), (item.axis,), reason)
            found.append(Operand(operand.shape, self.one_an_axis(fields, node)))
        return found

    def _meet(self, item: Field, other: Field, reason: str) -> Field | None:
        """Join two fields that shrink one axis; of two that nest but would shrink different ones, give the coarse."""
        if item.axis == other.axis:
            self.partition.union(item.ids, other.ids, reason)
        elif item.axis in support(other.ids) or other.axis in support(item.ids):
            coarse, fine = sorted((item, other), key=lambda one: len(support(one.ids)))
            self.conflicts.append(Conflict(coarse, fine, reason))
            return coarse
        return None

    # reduce ------------------------------------------------------------------------------------------------------

    def reduce(self, fields: Fields, dims: Sequence[int], keepdim: bool, node: fx.Node) -> Fields:
        """Fields after a sum over `dims`: one within them ends, one partly inside is joined along them.

        A field whose removed positions are not zero would be missed in the sum: it cannot shrink there.
        """
        lost = tuple(item for item in fields if item.axis in dims and not item.zero)
        kept = self.fix(lost, dims, f"a removed channel is not zero there, and would be missed in {describe(node)}")
        left: list[Field] = []
        for item in (*(item for item in fields if item.axis not in dims), *kept):
            ids = item.ids
            for dim in dims:
                ids = self.join_along(ids, dim, node)
            axis = item.axis
            if not keepdim:
                ids = ids.reshape([size for dim, size in enumerate(ids.shape) if dim not in dims])
                axis -= sum(dim < item.axis for dim in dims)
            left += self.normalized(ids, (axis,), item.zero)
        reason = f"combined with an axis that cannot shrink in {describe(node)}"
        nested = {self._meet(item, other, reason) for item, other in combinations(left, 2)}
        return tuple(item for item in left if item not in nested)

    def fix(self, fields: Fields, dims: Sequence[int], reason: str) -> Fields:
        """Fields where nothing may shrink along `dims`: rows are joined along them, what has no other axis is held."""
        left: list[Field] = []
        for item in fields:
            touched = set(dims) & set(support(item.ids))
            if not touched:
                left.append(item)
            elif touched == set(support(item.ids)):
                self.partition.hold(item.ids, reason)
            else:
                ids = item.ids
                for dim in touched:
                    self.partition.union(ids, ids.narrow(dim, 0, 1), reason)
                    ids = ids.narrow(dim, 0, 1)
                left += self.normalized(ids, (item.axis,), item.zero)
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
