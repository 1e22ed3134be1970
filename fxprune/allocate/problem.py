"""The problem of allocation: the widths that each group may have, what each costs, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fxprune.closed_form.removal import Removal
from fxprune.errors import BudgetError, PlanError
from fxprune.types import ChannelGroup, Coupling

Widths = dict[str, int]
Rungs = NDArray[np.int64]  # a position on the ladder of each group, [..., groups]
Totals = dict[str, NDArray[np.float64]]

ERROR = "error"
OVERFLOWED = 1e30


class Costs(Protocol):
    """What allocation needs of a cost: its kinds at given widths; groups that are left out are whole."""

    def evaluate(self, widths: Mapping[str, int], kinds: Sequence[str] = ...) -> Mapping[str, int]:
        """The cost of each kind."""

    def evaluate_many(
        self, widths: Mapping[str, NDArray[np.int64]], kinds: Sequence[str] = ...
    ) -> Mapping[str, NDArray[np.int64]]:
        """The same for arrays of widths."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What an allocator is given.

    cost: of the network at given widths.
    ladders: the widths that each group may have, widest first.
    errors: the foretold error of each group at each of them.
    limits: on the costs, absolute, by the name of the cost.
    max_error: limit on the total of the errors; FLOPs are to be least where it is set, the error where it is not.
    """

    cost: Costs
    ladders: Mapping[str, Sequence[int]]
    errors: Mapping[str, Sequence[float]]
    limits: Mapping[str, float]
    max_error: float | None = None

    @property
    def objective(self) -> str:
        """What is to be least: "error" or "flops"."""
        return ERROR if self.max_error is None else "flops"

    @property
    def bounds(self) -> dict[str, float]:
        """All limits, that on the error included; with room for its rounding, as the order of a sum may vary."""
        bounds = dict(self.limits)
        return bounds if self.max_error is None else {**bounds, ERROR: self.max_error * (1 - 1e-12)}

    @cached_property
    def dense(self) -> Mapping[str, int]:
        """What the original costs."""
        return self.cost.evaluate({name: ladder[0] for name, ladder in self.ladders.items()}, self.kinds)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The costs that matter: those that are limited, and the FLOPs, which may be the objective."""
        return tuple(dict.fromkeys(("flops", *self.limits)))

    @cached_property
    def lengths(self) -> Rungs:
        """Widths on each ladder, [groups]."""
        return np.array([len(ladder) for ladder in self.ladders.values()], dtype=np.int64)

    @cached_property
    def width_tables(self) -> list[NDArray[np.int64]]:
        """The ladders as arrays."""
        return [np.asarray(ladder, dtype=np.int64) for ladder in self.ladders.values()]

    @cached_property
    def error_tables(self) -> list[NDArray[np.float64]]:
        """The errors as arrays; one that overflowed is dear, so that sums stay numbers."""
        tables = (np.asarray(errors, dtype=np.float64) for errors in self.errors.values())
        return [np.nan_to_num(table, nan=OVERFLOWED, posinf=OVERFLOWED) for table in tables]

    @cached_property
    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Where each ladder begins, and all widths and errors one after another."""
        starts = np.cumsum(self.lengths) - self.lengths
        return starts, np.concatenate(self.width_tables), np.concatenate(self.error_tables)

    def at(self, rungs: Rungs) -> Widths:
        """Widths from positions on the ladders, [groups]."""
        return {name: ladder[rung] for (name, ladder), rung in zip(self.ladders.items(), rungs.tolist(), strict=True)}

    def rungs(self, widths: Mapping[str, int]) -> Rungs:
        """Positions on the ladders from widths; groups that are left out are whole. PlanError off the ladder."""
        for name, width in widths.items():
            if width not in self.ladders.get(name, ()):
                raise PlanError(f"{name}: width {width} is not among those that this group may have")
        return np.array([ladder.index(widths.get(name, ladder[0])) for name, ladder in self.ladders.items()])

    def totals(self, rungs: Rungs) -> Totals:
        """Costs and error at positions on the ladders, [..., groups] to [...] each."""
        starts, widths, errors = self._flat
        places = rungs + starts
        columns = np.moveaxis(widths[places], -1, 0)
        spent = self.cost.evaluate_many(dict(zip(self.ladders, columns, strict=True)), self.kinds)
        return {**{kind: count.astype(np.float64) for kind, count in spent.items()}, ERROR: errors[places].sum(-1)}

    def wider(self, rungs: Rungs) -> Rungs:
        """A row for each group, in which it alone is one rung wider, where it can be: [groups, groups]."""
        return np.maximum(rungs - np.eye(len(rungs), dtype=np.int64), 0)

    def narrower(self, rungs: Rungs) -> Rungs:
        """A row for each group, in which it alone is one rung narrower, where it can be: [groups, groups]."""
        return np.minimum(rungs + np.eye(len(rungs), dtype=np.int64), self.lengths - 1)

    def within(self, totals: Totals) -> NDArray[np.bool_]:
        """Where all limits hold."""
        held = np.ones_like(totals[ERROR], dtype=np.bool_)
        for kind, limit in self.bounds.items():
            held &= totals[kind] <= limit
        return held

    def goal(self, rungs: Rungs) -> NDArray[np.float64]:
        """What is to be least at positions on the ladders, [..., groups] to [...]; infinity where a limit is broken."""
        totals = self.totals(rungs)
        return np.where(self.within(totals), totals[self.objective], np.inf)

    def fits(self, widths: Mapping[str, int]) -> bool:
        """Whether all limits hold."""
        return bool(self.within(self.totals(self.rungs(widths))))

    def check_reachable(self) -> None:
        """Raise BudgetError, naming the tightest, unless the smallest network fits the limits on the costs."""
        least = self.cost.evaluate({name: ladder[-1] for name, ladder in self.ladders.items()}, self.kinds)
        kind = max(self.limits, key=lambda kind: least[kind] / self.limits[kind], default=None)
        if kind is None or least[kind] <= self.limits[kind]:
            return
        limit, dense = self.limits[kind], self.dense[kind]
        raise BudgetError(
            f"{kind}={limit:,.0f} ({limit / dense:.1%} of {dense:,}) cannot be reached: the smallest is "
            f"{least[kind]:,} ({least[kind] / dense:.1%}); what is frozen or held, max_ratio and multiple_of decide "
            "how far one can go"
        )


def ladders_of(
    coupling: Coupling, multiple_of: int | None, held: Container[str], max_ratio: float, liked: int = 1
) -> dict[str, list[int]]:
    """The widths that each group may have, widest first; its own alone where it is held.

    liked: of how many channels they are multiples, where no `multiple_of` is given.
    """
    return {
        group.name: ladder(group, multiple_of or in_units(liked, group), 0.0 if group.name in held else max_ratio)
        for group in coupling.groups
    }


def in_units(multiple: int, group: ChannelGroup) -> int:
    """A multiple of channels in units of a group: a unit may be several channels, as an attention head is."""
    first, end = group.offset, group.offset + group.width
    channels = min(int(((source.ids >= first) & (source.ids < end)).sum()) // group.width for source in group.sources)
    return multiple // math.gcd(multiple, max(1, channels))


def ladder(group: ChannelGroup, multiple_of: int, max_ratio: float) -> list[int]:
    """The widths that a group may have, widest first."""
    return ladder_between(group, multiple_of, math.ceil(round((1 - max_ratio) * group.width, 9)), group.width)


def ladder_between(group: ChannelGroup, multiple_of: int, least: float, most: float) -> list[int]:
    """The whole widths between two bounds that a group may have, widest first: multiples, and the original's own."""
    step, rounding = math.lcm(group.step, multiple_of), 1e-6
    first = max(1, math.ceil(least / step - rounding)) * step
    found = {*range(first, math.floor(most + rounding) + 1, step)}
    return sorted(found | {group.width} if group.width <= most else found, reverse=True)


def error_at(removal: Removal, width: int) -> float:
    """The foretold error of a group that keeps `width` units."""
    return removal.errors[(len(removal.order) - width) // removal.step]


def foretold(removals: Mapping[str, Removal], widths: Mapping[str, int]) -> float:
    """The total error that the curves foretell at these widths; groups that are left out are whole."""
    return math.fsum(error_at(removals[name], width) for name, width in widths.items() if name in removals)
