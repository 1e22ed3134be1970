"""Timed: a plan whose latency is within a limit, as it was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

from fxprune.allocate import MULTIPLE_FOR_LATENCY, ladder_between
from fxprune.budget import Budget
from fxprune.errors import BudgetError
from fxprune.latency import Clock, Latencies, Roofline, Sample, Timing
from fxprune.passes.base import COST, COUPLING, LATENCIES, state
from fxprune.passes.shrink import shrink
from fxprune.types import ChannelGroup, Coupling, Plan

SAMPLES = 8  # networks of random widths that are measured beside the original before anything is planned
LEAST = 0.125  # of a group's width in these
ROUNDS = 6  # of planning, measuring what was planned, and fitting anew
NEAR = 10.0  # weight of the original and of what was planned: there the fit is to be right


def timed_plan(
    gm: fx.GraphModule,
    planned: Callable[[Budget], Plan],
    budget: Budget,
    timing: Timing,
    heads: bool,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[Plan, Latencies]:
    """The plan for a budget that limits the latency, and what was measured; the cost handed on with `gm` learns of it.

    The time of each piece of the network is fitted to measured networks of random widths. What is planned by that is
    measured, too, and the fit made anew, until the plan is within the limit by a fit that has seen it.

    planned: the plan for a budget, by the cost that is handed on.

    Raises BudgetError where the limit cannot be reached.
    """
    clock, roofline = Clock(gm, timing), roofline_of(gm, timing)
    dense = clock.measure(gm)
    scale = clock.whole(gm, dense) / sum(dense.pieces.values())
    found = Latencies(clock.manner, scale, (Sample({}, dense.pieces, NEAR),))
    progress(1, 1 + SAMPLES)

    def seen(plan: Plan, weight: float) -> Latencies:
        widths = {name: len(units) for name, units in plan.kept.items()}
        sample = Sample(widths, clock.measure(shrink(gm, plan)).pieces, weight)
        return replace(found, samples=(*found.samples, sample))

    generator = torch.Generator().manual_seed(seed)
    for number in range(SAMPLES):
        found = seen(_drawn(state(gm)[COUPLING], heads, generator), 1.0)
        progress(2 + number, 1 + SAMPLES)
    hand_on(gm, roofline, found)
    tightened = 1.0
    for _ in range(ROUNDS):
        limit = budget.absolute(state(gm)[COST].evaluate(kinds=budget.kinds))["latency"]
        plan = planned(replace(budget, latency=tightened * limit))
        found = seen(plan, NEAR)
        hand_on(gm, roofline, found)
        limit, spent = limit_and_spent(gm, plan, budget)
        if spent <= limit:
            return plan, found
        tightened *= limit / spent
    raise BudgetError(
        f"latency={limit:,.0f} us was planned for {ROUNDS} times, and {spent:,.0f} us measured: times differ too much "
        "from call to call on this machine. Let nothing else run on it, or allow more"
    )


def roofline_of(gm: fx.GraphModule, timing: Timing) -> Roofline:
    """What the time of each piece of the graph may depend on."""
    found = state(gm)
    return Roofline(gm, found[COUPLING], found[COST], timing.compiled)


def hand_on(gm: fx.GraphModule, roofline: Roofline, found: Latencies) -> None:
    """Let the cost that is handed on with a graph know the latency, and the report how it was measured."""
    state(gm)[LATENCIES] = found
    state(gm)[COST] = replace(state(gm)[COST], latency=roofline.fitted(found))


def limit_and_spent(gm: fx.GraphModule, plan: Plan, budget: Budget) -> tuple[float, float]:
    """Microseconds that the budget allows, and that the plan takes."""
    cost = state(gm)[COST]
    spent = cost.evaluate({name: len(units) for name, units in plan.kept.items()}, budget.kinds)
    return budget.absolute(cost.evaluate(kinds=budget.kinds))["latency"], spent["latency"]


def _drawn(coupling: Coupling, heads: bool, generator: torch.Generator) -> Plan:
    """Random widths, as the hardware likes them."""
    return Plan({group.name: _units(group, generator) for group in coupling.groups}, heads=heads)


def _units(group: ChannelGroup, generator: torch.Generator) -> tuple[int, ...]:
    """The first units of each block, of a random width."""
    widths = ladder_between(group, MULTIPLE_FOR_LATENCY, LEAST * group.width, group.width)
    width = widths[int(torch.randint(len(widths), (), generator=generator))]
    blocks = group.blocks or (tuple(range(group.width)),)
    return tuple(sorted(unit for block in blocks for unit in block[: width // len(blocks)]))
