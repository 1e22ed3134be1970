"""Exchanges: one group gets units that another gives, as long as that helps at the true cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fxprune.allocate.problem import ERROR, Problem, Rungs, Totals

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def exchanged(problem: Problem, rungs: Rungs, passes: int = 20) -> Rungs:
    """Widths from which no exchange between two groups, and no step of one alone, leads to better ones.

    Every group in turn goes up, or stays, while one other goes down, or stays, by any of `STEPS` or to the end of its
    ladder; what fits and is best is taken. Ends after a pass that changes nothing, or after `passes`.
    """
    around = _Around(problem, rungs)
    for _ in range(passes):
        before = around.rungs
        for group in range(len(rungs)):
            better = best_of(problem, around.rungs, around.exchanges(group))
            if better is not around.rungs:
                around = _Around(problem, better)
        if around.rungs is before:
            break
    return around.rungs


def best_of(problem: Problem, rungs: Rungs, others: Rungs) -> Rungs:
    """The best of `others` [rows, groups] that keeps all limits, if it is better than `rungs`, else `rungs`."""
    if not len(others):
        return rungs
    goal = problem.goal(others)
    best = int(np.argmin(goal))
    return others[best] if goal[best] < problem.goal(rungs) * (1 - 1e-12) else rungs


@dataclass(frozen=True, eq=False)
class _Moves:
    """Steps of single groups: which group goes to which rung, and what that changes of every total, [moves] each."""

    groups: Rungs
    rungs: Rungs
    changes: Totals
    shares: NDArray[np.float64]  # of the group's present width that come or go


@dataclass(frozen=True, eq=False)
class _Around:
    """The surroundings of widths that keep all limits, or do not yet."""

    problem: Problem
    rungs: Rungs

    @cached_property
    def here(self) -> Totals:
        """The totals of the widths themselves."""
        return self.problem.totals(self.rungs)

    @cached_property
    def down(self) -> _Moves:
        """All steps down."""
        return self._moves(1)

    @cached_property
    def up(self) -> _Moves:
        """All steps up."""
        return self._moves(-1)

    def exchanges(self, group: int) -> Rungs:
        """All rows in which `group` goes up or stays and another goes down or stays, [rows, groups], but for those that
        cannot help: with a step down by a share s of its width, what another group's step up costs falls by at most
        that share in each term, so by 2 s where it is squared."""
        mine = np.flatnonzero(self.up.groups == group)
        steps = {kind: change[mine][:, None] for kind, change in self.up.changes.items()}
        relief = np.minimum(1, 2 * self.down.shares)
        least = {kind: steps[kind] * (1 - (kind != ERROR) * relief) + self.down.changes[kind] for kind in self.here}
        hopeful = least[self.problem.objective] < 0
        for kind, bound in self.problem.bounds.items():
            hopeful &= self.here[kind] + least[kind] <= bound
        ups, downs = np.nonzero(hopeful)
        rows = np.repeat(self.rungs[None], len(ups), axis=0)
        rows[np.arange(len(rows)), self.down.groups[downs]] = self.down.rungs[downs]
        rows[:, group] = np.where(
            self.up.rungs[mine[ups]] < self.rungs[group], self.up.rungs[mine[ups]], rows[:, group]
        )
        return rows

    def _moves(self, direction: int) -> _Moves:
        found = list(self._steps(direction))
        groups, rungs = np.array(found, dtype=np.int64).reshape(-1, 2).T
        rows = np.repeat(self.rungs[None], len(found), axis=0)
        rows[np.arange(len(rows)), groups] = rungs
        widths = np.array([self.problem.width_tables[group][rung] for group, rung in found], dtype=np.float64)
        present = np.array([self.problem.width_tables[group][self.rungs[group]] for group, _ in found])
        changes = {kind: total - self.here[kind] for kind, total in self.problem.totals(rows).items()}
        return _Moves(groups, rungs, changes, np.abs(widths / present - 1))

    def _steps(self, direction: int) -> Iterator[tuple[int, int]]:
        """Each group with the rungs that it may go to; its own first, which is no step."""
        for group, (rung, length) in enumerate(zip(self.rungs.tolist(), self.problem.lengths.tolist(), strict=True)):
            room = length - 1 - rung if direction > 0 else rung
            steps = sorted({0, room, *(step for step in STEPS if step < room)})
            yield from ((group, rung + direction * step) for step in steps)
