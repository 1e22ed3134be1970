"""What a plan leaves of each tensor: sizes and elements, as the fields predict them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, fx

from fxprune.calls import concrete_shape
from fxprune.errors import PlanError, describe
from fxprune.types import Coupling, Field, Plan


@dataclass(frozen=True, eq=False)
class Kept:
    """The prediction of a plan for every tensor of a graph.

    coupling: of the graph before the rewrite.
    counts: how often each id is there afterwards, from `Coupling.counts`.
    """

    coupling: Coupling
    counts: Tensor

    @staticmethod
    def under(coupling: Coupling, plan: Plan) -> Kept:
        """The prediction for `plan`."""
        return Kept(coupling, coupling.counts(plan))

    @cached_property
    def mask(self) -> Tensor:
        """Which ids stay: bool."""
        return self.counts > 0

    def ids(self, node: fx.Node, axis: int) -> Tensor | None:
        """The units along `axis` of the node's value, in its first row; None where the axis is whole."""
        item = _on_axis(self.coupling.fields.get(node.name, ()), axis)
        if item is None:
            return None
        rows = _rows(item.ids, axis)
        sizes = self.counts[rows].sum(-1)
        if int(sizes.min()) != int(sizes.max()):
            raise PlanError(f"rows of {describe(node)} would keep {int(sizes.min())} to {int(sizes.max())} positions")
        return rows[0]

    def positions(self, node: fx.Node, axis: int) -> Tensor | None:
        """How often each position of `axis` of the node's value is there: int64, of the first row; None if whole."""
        ids = self.ids(node, axis)
        return None if ids is None else self.counts[ids]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of the node's value after the rewrite, symbolic sizes as on the example."""
        sizes = list(concrete_shape(node))
        for axis in range(len(sizes)):
            counts = self.positions(node, axis)
            if counts is not None:
                sizes[axis] = int(counts.sum())
        return tuple(sizes)

    def count(self, node: fx.Node, axis: int, start: int, stop: int) -> int:
        """How many positions there are instead of those from start to stop of `axis`."""
        counts = self.positions(node, axis)
        return max(0, stop - start) if counts is None else int(counts[start:stop].sum())

    def stays(self, fields: Sequence[Field], rank: int) -> Tensor:
        """Which elements of a tensor of `rank` dimensions stay: bool, broadcastable to it."""
        stays = torch.ones((1,) * rank, dtype=torch.bool)
        for item in fields:
            stays = stays & self.mask[item.ids]
        return stays

    def cut(self, tensor: Tensor, fields: Sequence[Field]) -> Tensor:
        """A copy of a tensor without the elements that leave, and with those of repeated units as often as they are.

        Copies stand next to each other: a unit that has several positions in a row is repeated as a whole.
        """
        return self.cutter(fields, tensor.device)(tensor)

    def cutter(self, fields: Sequence[Field], device: torch.device) -> Callable[[Tensor], Tensor]:
        """`cut` for many tensors of the same fields."""
        taken, left = list[tuple[Tensor, int]](), [item for item in fields if bool((self.counts[item.ids] != 1).any())]
        while left:
            item, *rest = left
            index = self._index(item)
            taken.append((index.to(device), item.axis))
            left = [Field(_taken(other.ids, index, item.axis), other.axis) for other in rest]
        return partial(_each_taken, taken)

    def _index(self, item: Field) -> Tensor:
        """Which position of its axis each position afterwards comes from: broadcastable, but for the axis, to `ids`."""
        lines = item.ids.movedim(item.axis, -1)
        index = _sources(lines.reshape(-1, lines.shape[-1]), self.counts)
        return index.reshape(*lines.shape[:-1], -1).movedim(-1, item.axis)


def _sources(ids: Tensor, counts: Tensor) -> Tensor:
    """For rows of ids: the position that each one afterwards comes from, [rows, positions]."""
    times = counts[ids]
    taken = torch.arange(ids.numel()).repeat_interleave(times.flatten())
    if int(times.max()) > 1:  # from `a a b b` to `a a' a a' b b'`
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        run = starts.flatten().cumsum(0)[taken]
        before = times.flatten().cumsum(0) - times.flatten()
        copy = torch.arange(len(taken)) - before[taken]
        taken = taken[(run * (int(times.max()) + 1) + copy).argsort(stable=True)]
    return taken.reshape(len(ids), -1) % ids.shape[1]


def _each_taken(taken: Sequence[tuple[Tensor, int]], tensor: Tensor) -> Tensor:
    """What is left of a tensor after one axis and another."""
    cut = tensor.detach() if taken else tensor.detach().clone()
    for index, axis in taken:
        cut = _taken(cut, index, axis)
    return cut


def _taken(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    """The entries of `tensor` at `index` along `axis`; the other dimensions are broadcast. Same where it is 1 wide."""
    if tensor.shape[axis] == 1:
        return tensor
    if index.numel() == index.shape[axis]:
        return tensor.index_select(axis, index.flatten())
    others = [1 if dim == axis else size for dim, size in enumerate(tensor.shape)]
    rows = list(torch.broadcast_shapes(others, [1 if dim == axis else size for dim, size in enumerate(index.shape)]))
    shape = [tensor.shape[axis] if dim == axis else size for dim, size in enumerate(rows)]
    where = [index.shape[axis] if dim == axis else size for dim, size in enumerate(rows)]
    return tensor.expand(shape).gather(axis, index.expand(where))


def _rows(ids: Tensor, axis: int) -> Tensor:
    lines = ids.movedim(axis, -1)
    return lines.reshape(-1, lines.shape[-1])


def _on_axis(fields: Sequence[Field], axis: int) -> Field | None:
    return next((item for item in fields if item.axis == axis), None)
