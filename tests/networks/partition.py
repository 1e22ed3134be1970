"""A second opinion on coupling, for networks that are put together from steps: lists of labels and union-find.

It shares nothing with the analysis: no ids, no tensors, no operators. Each step of a drawn network says in plain lists
which channels it makes, reads, joins, and lays out in rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Labels = list[int]
Family = frozenset[frozenset[int]]
PERMANENT = 0


@dataclass
class Partition:
    """Channels as labels; label 0 never leaves.

    axes: the labels along each axis of a parameter, by its name and dimension, made and read.
    tensors: the labels of the channels of every intermediate value: like a parameter, it must not be one unit.
    rows: layouts whose rows keep equally many.
    doubtful: labels for which the steps speak only if none of them is permanent.
    """

    parents: list[int] = field(default_factory=lambda: [PERMANENT])
    axes: dict[tuple[str, int], Labels] = field(default_factory=dict)
    made: set[tuple[str, int]] = field(default_factory=set)
    tensors: list[Labels] = field(default_factory=list)
    rows: list[list[Labels]] = field(default_factory=list)
    doubtful: Labels = field(default_factory=list)

    def fresh(self, count: int) -> Labels:
        """Labels that nothing else has."""
        first = len(self.parents)
        self.parents += range(first, first + count)
        return list(range(first, first + count))

    def make(self, param: str, labels: Labels, dim: int = 0) -> Labels:
        """The parameter makes these channels along `dim`."""
        self.made.add((param, dim))
        return self.lie(param, labels, dim)

    def lie(self, param: str, labels: Labels, dim: int) -> Labels:
        """The parameter's `dim` runs along these channels; where it did before, the two are joined."""
        before = self.axes.setdefault((param, dim), labels)
        return self.join(before, labels)

    def join(self, left: Labels, right: Labels) -> Labels:
        """What lies at the same position leaves together."""
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self.parents[high] = low
        return left

    def hold(self, labels: Labels) -> Labels:
        """These never leave."""
        return self.join(labels, [PERMANENT] * len(labels))

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            label = self.parents[label]
        return label

    def lay(self, labels: Labels, rows: int) -> list[Labels]:
        """Rows, one behind the other, that keep equally many."""
        size = len(labels) // rows
        found = [labels[row * size : (row + 1) * size] for row in range(rows)]
        if rows > 1 and size > 1:
            self.rows.append(found)
        return found

    def settle(self) -> None:
        """Nothing may leave that no parameter makes, or that is all of a value."""
        made = {self.root(label) for axis in self.made for label in self.axes[axis]}
        self.hold([label for label in range(len(self.parents)) if self.root(label) not in made])
        while True:
            every = [*self.tensors, *self.axes.values()]
            whole = [labels for labels in every if len({self.root(label) for label in labels}) == 1]
            if all(self.root(labels[0]) == PERMANENT for labels in whole):
                return
            for labels in whole:
                self.hold(labels)

    def classes(self, labels: Sequence[int]) -> Labels:
        """The unit of each label."""
        return [self.root(label) for label in labels]

    def families(self) -> list[Family] | None:
        """The blocks that the rows amount to, or None where plain lists of labels cannot say it.

        They can where rows are free of permanent channels, where two are the same units or none in common, and where
        the units of a row lie on the same axes.
        """
        if PERMANENT in self.classes(self.doubtful):
            return None
        places = self._places()
        found: list[Family] = []
        for layout in self.rows:
            rows = [Counter(self.classes(row)) for row in layout]
            family = frozenset(frozenset(row) for row in rows)
            if len(family) == 1:
                continue
            units = [unit for row in family for unit in row]
            plain = (
                PERMANENT not in units
                and len(units) == len(set(units))
                and len({len(row) for row in family}) == 1
                and len(next(iter(family))) > 1
                and len({count for row in rows for count in row.values()}) == 1
                and all(len({places[unit] for unit in row}) == 1 for row in family)
            )
            if not plain:
                return None
            found.append(family)
        return _finest(found)

    def groups(self) -> set[frozenset[int]] | None:
        """Units that form a group: those on the same axes, and those in one family of blocks; None as in families."""
        families = self.families()
        if families is None:
            return None
        inside = {unit: index for index, family in enumerate(families) for row in family for unit in row}
        found: dict[object, set[int]] = {}
        for unit, place in self._places().items():
            if unit != PERMANENT:
                found.setdefault(inside.get(unit, place), set()).add(unit)
        return {frozenset(units) for units in found.values()}

    def _places(self) -> dict[int, frozenset[tuple[object, int]]]:
        """For each unit on which axes it lies, and how often."""
        found: dict[int, Counter[object]] = {}
        for axis, labels in self.axes.items():
            for unit in self.classes(labels):
                found.setdefault(unit, Counter())[axis] += 1
        return {unit: frozenset(places.items()) for unit, places in found.items()}


def _finest(families: list[Family]) -> list[Family] | None:
    """Families without those that finer ones imply; None where two cross.

    Rows that are made of equally many blocks each are equal when all those blocks are: the blocks become one family.
    """
    finest: list[Family] = []
    for family in sorted(set(families), key=lambda rows: len(next(iter(rows)))):
        units = frozenset[int]().union(*family)
        touching = [fine for fine in finest if units & frozenset().union(*fine)]
        blocks = frozenset[frozenset[int]]().union(*touching)
        inside = [[block for block in blocks if block <= row] for row in family]
        whole = all(frozenset().union(*parts) == row for parts, row in zip(inside, family, strict=True))
        if touching and not (whole and len({len(parts) for parts in inside}) == 1):
            return None
        finest = [fine for fine in finest if fine not in touching]
        finest.append(blocks if touching else family)
    return finest
