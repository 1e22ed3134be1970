"""Timed: a plan whose latency is within a limit, as it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from fxprune.budget import Budget
from fxprune.errors import BudgetError
from fxprune.latency import Clock, Latencies, Roofline, Sample, Timing
from fxprune.passes.base import COST, COUPLING, LATENCIES, clone, state, without_guards
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import shrink
from fxprune.progress import Counted
from fxprune.types import ChannelGroup, Plan

SAMPLES = 8  # networks of random widths that are measured beside the original before anything is planned
NARROWEST = 0.125  # share of a group's width in these
ROUNDS = 6  # of planning, measuring what was planned, and fitting anew
WEIGHT = 10.0  # of the original and of what was planned: there the fit is to be right
UNUSED = 0.03  # of a limit: a plan that leaves less is good enough to stop

Ladders = Mapping[str, Sequence[int]]


def timed_plan(
    gm: fx.GraphModule,
    planned: Callable[[Budget], Plan],
    budget: Budget,
    timing: Timing,
    ladders: Ladders,
    progress: Counted,
    *,
    heads: bool = False,
    seed: int = 0,
) -> tuple[Plan, Latencies]:
    """The plan for a budget that limits the latency, and what was measured; the cost handed on with `gm` learns of it.

    The time of each piece of the network is fitted to measured networks of random widths. What is planned by that is
    measured, too, and the fit made anew: of the plans within the limit as they were measured, that with the least time
    left is returned.

    planned: the plan for a budget, by the cost that is handed on.
    ladders: the widths that each group may have.

    Raises BudgetError where the limit cannot be reached.
    """
    watch = _Stopwatch(gm, timing, heads)
    generator = torch.Generator().manual_seed(seed)
    for done in range(SAMPLES):
        progress(done + 1, 1 + SAMPLES)
        watch.take(_drawn(gm, ladders, heads, generator), 1.0)
    progress(1 + SAMPLES, 1 + SAMPLES)
    limit = Budget(latency=budget.latency).absolute({"latency": watch.whole})["latency"]
    plan, found = _within(limit, planned, budget, watch)
    _hand_on(gm, watch.roofline, found)
    return plan, found


def _within(
    limit: float, planned: Callable[[Budget], Plan], budget: Budget, watch: _Stopwatch
) -> tuple[Plan, Latencies]:
    """Of several plans the one that leaves least of the limit, with the measurements up to it."""
    best: tuple[float, Plan, Latencies] | None = None
    asked, possible, plan, power = limit, limit, None, 1
    for done in range(ROUNDS):
        watch.fit()
        before = plan
        try:
            plan = planned(replace(budget, latency=asked))
        except BudgetError:  # by the polynomial; what it allowed before took too long
            if not done:
                raise
            asked = (asked + possible) / 2
            continue
        if plan == before:
            break
        possible = asked
        spent = watch.take(plan, WEIGHT)
        if spent < limit and (best is None or spent > best[0]):
            best = spent, plan, watch.found
        if (1 - UNUSED) * limit <= spent < limit:
            break
        asked *= min(1.0, limit / spent) ** power
        power = 2 * power if spent >= limit else 1  # steps that grow: a stair of the hardware may be wide
    if best is None:
        raise BudgetError(
            f"latency={limit:,.0f} was planned for, and {spent:,.0f} ns were measured: let nothing else run on this "
            "machine, delete the table of times, or allow more"
        )
    return best[1:]


class _Stopwatch:
    """What has been measured of a network and of what plans leave of it."""

    def __init__(self, gm: fx.GraphModule, timing: Timing, heads: bool) -> None:
        pinned = _pinned(gm, heads)
        self._gm, self._clock, self.roofline = gm, Clock(gm, timing), _roofline_of(gm, pinned, timing)
        measured = self._clock.measure(pinned)
        dense = Sample({}, measured.pieces, WEIGHT)
        self.found = Latencies(self._clock.manner, self._clock.whole(pinned, measured) / dense.total, (dense,))

    @property
    def whole(self) -> float:
        """Nanoseconds of the original."""
        return self.found.nanoseconds(self.found.samples[0])

    def take(self, plan: Plan, weight: float) -> float:
        """Measure what a plan leaves: nanoseconds."""
        sample = Sample(plan.counts, self._clock.measure(shrink(self._gm, plan)).pieces, weight)
        self.found = replace(self.found, samples=(*self.found.samples, sample))
        return self.found.nanoseconds(sample)

    def fit(self) -> None:
        """Let the cost that is handed on know what was measured so far."""
        found = state(self._gm)
        found[COST] = replace(found[COST], latency=self.roofline.fitted(self.found))


def restore(gm: fx.GraphModule, timing: Timing, heads: bool, found: Latencies) -> None:
    """Hand on what was measured in an earlier run."""
    _hand_on(gm, _roofline_of(gm, _pinned(gm, heads), timing), found)


def _roofline_of(gm: fx.GraphModule, pinned: fx.GraphModule, timing: Timing) -> Roofline:
    """What the time of each piece of the graph may depend on."""
    with without_guards(gm):
        return Roofline(pinned, state(gm)[COUPLING], state(gm)[COST], timing.compiled)


def _hand_on(gm: fx.GraphModule, roofline: Roofline, found: Latencies) -> None:
    """Let the cost that is handed on with a graph know the latency, and the report how it was measured."""
    state(gm)[LATENCIES] = found
    state(gm)[COST] = replace(state(gm)[COST], latency=roofline.measured(found))


def _pinned(gm: fx.GraphModule, heads: bool) -> fx.GraphModule:
    """A copy with the calls that shrinking needs, which take time, too."""
    pinned = clone(gm)
    PinSizes(heads)(pinned)
    return pinned


def _drawn(gm: fx.GraphModule, ladders: Ladders, heads: bool, generator: torch.Generator) -> Plan:
    """Random widths of the ladders."""
    groups: Sequence[ChannelGroup] = state(gm)[COUPLING].groups
    return Plan({group.name: _units(group, ladders[group.name], generator) for group in groups}, heads=heads)


def _units(group: ChannelGroup, ladder: Sequence[int], generator: torch.Generator) -> tuple[int, ...]:
    """The first units of each block, of a random width."""
    widths = [width for width in ladder if width >= NARROWEST * group.width] or [group.width]
    width = widths[int(torch.randint(len(widths), (), generator=generator))]
    blocks = group.blocks or (tuple(range(group.width)),)
    return tuple(sorted(unit for block in blocks for unit in block[: width // len(blocks)]))
