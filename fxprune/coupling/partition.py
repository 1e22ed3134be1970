"""A partition of ids that only coarsens: the whole state of the coupling analysis."""

from __future__ import annotations

import torch
from torch import Tensor


class Partition:
    """Ids 1, 2, ... joined into classes; a class may be held. Id 0 is permanent.

    Unions and holds are recorded as arrays and take effect at the next `settle`, so that a pass over a graph reads one
    consistent partition and costs no Python work per id.
    """

    def __init__(self) -> None:
        self._count = 1
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._holds: list[tuple[Tensor, str]] = []
        self._classes = torch.zeros(1, dtype=torch.int64)
        self._reasons: dict[int, str] = {}
        self._labels = self._classes

    @property
    def count(self) -> int:
        """How many ids there are, id 0 included."""
        return self._count

    def fresh(self, count: int) -> Tensor:
        """`count` new ids, each a class of its own."""
        ids = torch.arange(self._count, self._count + count)
        self._count += count
        return ids

    def union(self, left: Tensor, right: Tensor, reason: str) -> None:
        """Join elementwise, with broadcasting. What is joined with id 0 is held, for `reason`."""
        self._join(self._first_rows(left, right, reason), self._first_rows(right, left, reason), reason)

    def _first_rows(self, ids: Tensor, other: Tensor, reason: str) -> Tensor:
        """The first rows of `ids` along what `other` is broadcast over: all rows there meet the same, so they join."""
        for dim in range(-ids.ndim, 0):
            if ids.shape[dim] > 1 and (-dim > other.ndim or other.shape[dim] == 1):
                first = ids.narrow(dim, 0, 1)
                self._join(ids, first.expand_as(ids), reason)
                ids = first
        return ids

    def _join(self, left: Tensor, right: Tensor, reason: str) -> None:
        self.hold(torch.where(left == 0, right, 0), reason)
        self.hold(torch.where(right == 0, left, 0), reason)
        differ = (left != right) & (left != 0) & (right != 0)
        if differ.any():
            left, right = torch.broadcast_tensors(left, right)
            self._edges.append((left[differ], right[differ]))

    def hold(self, ids: Tensor, reason: str) -> None:
        """These ids may never leave."""
        ids = ids[ids != 0].unique()
        if len(ids):
            self._holds.append((ids, reason))

    def discard(self) -> None:
        """Forget the unions and holds since the last `settle`."""
        self._edges, self._holds = [], []

    def canonical(self, ids: Tensor) -> Tensor:
        """Ids as representatives of their classes at the last `settle`; those of held classes are 0."""
        known = len(self._labels)
        return torch.where(ids < known, self._labels[ids.clamp(max=known - 1)], ids)

    def reason(self, ids: Tensor) -> str | None:
        """The reason for which the first held id among `ids` is held."""
        for label in self._classes[ids.flatten()].tolist():
            if label in self._reasons:
                return self._reasons[label]
        return None

    def settle(self) -> bool:
        """Let the recorded unions and holds take effect; whether the partition has changed since the last time."""
        before, self._labels = self._labels, self._settled()
        return len(before) != len(self._labels) or not torch.equal(before, self._labels)

    def _settled(self) -> Tensor:
        known = torch.arange(self._count)
        known[: len(self._classes)] = self._classes
        self._classes = _connected(known, self._edges)
        self._edges = []
        reasons: dict[int, str] = {}  # the first reason of a class stays
        for label, reason in self._reasons.items():
            reasons.setdefault(int(self._classes[label]), reason)
        for ids, reason in self._holds:
            for label in self._classes[ids].unique().tolist():
                reasons.setdefault(label, reason)
        self._holds, self._reasons = [], reasons
        labels = self._classes.clone()
        held = torch.zeros(self._count, dtype=torch.bool)
        held[list(reasons)] = True
        labels[held[labels]] = 0
        return labels


def _connected(classes: Tensor, edges: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The smallest id of each class after joining `edges`: hooking onto the smaller label, then pointer jumping."""
    if not edges:
        return classes
    pairs = torch.cat([a * len(classes) + b for a, b in edges]).unique()
    left, right = pairs // len(classes), pairs % len(classes)
    while True:
        a, b = classes[left], classes[right]
        if torch.equal(a, b):
            return classes
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        parents = torch.arange(len(classes)).scatter_reduce(0, high, low, "amin")
        while not torch.equal(parents, parents[parents]):
            parents = parents[parents]
        classes = parents[classes]
