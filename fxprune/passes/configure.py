"""Configure: how wide each group is to be before the network is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.allocate import check_widths, frozen_groups, ladder_between
from fxprune.budget import Budget
from fxprune.capture import capture_info
from fxprune.cost import cost
from fxprune.errors import BudgetError, PlanError, registered
from fxprune.passes.base import COST, COUPLING, PLAN, analysed, require_operators, state
from fxprune.passes.choose import check_fits, input_specs, nothing_shrinks, require_own_plan
from fxprune.types import ChannelGroup, Coupling, Plan
from fxprune.widths import (
    GROWTH,
    METHODS,
    SLACK,
    Choice,
    Setting,
    check_reachable,
    configured,
    layers_of,
    rounded,
    slopes_of,
)

CONFIGURED = "configured"


@dataclass(frozen=True, eq=False)
class Configure(PassBase):
    """Replaces nothing: sets the width of every group before training, and hands on the plan.

    budget: what the network may cost.
    method: a name of `fxprune.widths.METHODS`.
    grow: whether groups may become wider than they are (PreConfig).
    model, data: for the methods that follow a loss: the user's module, and a batch of inputs and labels.
    multiple_of, freeze, max_ratio, heads: as in `fxprune.precrop`.
    seed: of the choice of the units where the method has no order: at initialisation all are alike.
    Postcondition: the plan is possible, and the network that it leaves fits the budget.
    """

    budget: Budget
    method: str = "precrop"
    grow: bool = False
    model: nn.Module | None = field(default=None, repr=False)
    data: tuple[Any, Any] | None = field(default=None, repr=False)
    multiple_of: int = 1
    freeze: Iterable[str] = ()
    max_ratio: float | None = None
    heads: bool = False
    seed: int = 0

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph comes from `capture`, and the options are known."""
        capture_info(graph_module)
        require_own_plan(graph_module, "Configure")
        registered("method", self.method, METHODS)
        if self.budget.max_error is not None:
            raise BudgetError("max_error= needs a trained network; before training give flops=, params= or memory=")
        if self.budget.latency is not None:
            raise BudgetError("latency= is for prune: before training give flops=, params= or memory=")
        check_widths(self.multiple_of, 1.0 if self.max_ratio is None else self.max_ratio)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Hand on coupling, cost and plan; the graph stays as it is."""
        found = state(graph_module)
        if PLAN in found:
            return PassResult(graph_module, False)
        require_operators(graph_module, "Configure")
        coupling = analysed(graph_module, self.heads)
        if not coupling.groups:
            raise PlanError(nothing_shrinks(coupling))
        found[COUPLING], found[COST] = coupling, cost(graph_module, coupling)
        setting, ladders = self._setting(graph_module, coupling)
        check_reachable(setting)
        choice = METHODS[self.method](setting)
        widths = rounded(setting, choice, ladders)
        found[CONFIGURED] = configured(self.method, setting, choice, widths)
        found[PLAN] = self._plan(graph_module, coupling, choice, widths)
        return PassResult(graph_module, False)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The plan is possible, and fits."""
        check_fits(graph_module, self.budget)

    def _setting(self, gm: fx.GraphModule, coupling: Coupling) -> tuple[Setting, dict[str, list[int]]]:
        """The problem that the method is given, and the whole widths that each group may have."""
        layers, whole = layers_of(gm, coupling), state(gm)[COST]
        slopes, frozen = slopes_of(layers), frozen_groups(coupling, self.freeze)
        ladders = {}
        for group in coupling.groups:
            fixed = group.name in frozen or not slopes[group.name]  # no layer of the objective speaks for it
            least = group.width if fixed else (1 - (1.0 if self.max_ratio is None else self.max_ratio)) * group.width
            most = group.width * (GROWTH if self.grow and not fixed else 1)
            ladders[group.name] = ladder_between(group, self.multiple_of, least, most)
        setting = Setting(
            gm=gm,
            coupling=coupling,
            cost=whole,
            layers=layers,
            limits=self.budget.absolute(whole.evaluate(kinds=self.budget.kinds)),
            least={name: ladder[-1] for name, ladder in ladders.items()},
            most={name: ladder[0] for name, ladder in ladders.items()},
            slack=SLACK if self.grow else 0.0,
            model=self.model,
            data=self.data,
            seed=self.seed,
        )
        return setting, ladders

    def _plan(self, gm: fx.GraphModule, coupling: Coupling, choice: Choice, widths: Mapping[str, int]) -> Plan:
        """The units that make up the widths."""
        generator = torch.Generator().manual_seed(self.seed)
        kept = {}
        for group in coupling.groups:
            order = choice.order.get(group.name) or _any_order(group, generator)
            if widths[group.name] != group.width:
                kept[group.name] = units_of(group, order, widths[group.name])
        widens = any(widths[group.name] > group.width for group in coupling.groups)
        whole = {name: coupling.by_name[name].width for name in kept}
        return Plan(kept, input_specs(gm), self.heads, widens=widens, widths=whole)


def units_of(group: ChannelGroup, order: Iterable[int], width: int) -> tuple[int, ...]:
    """`width` units of a group: the ones that leave last, or all, and those first that leave last a further time."""
    copies, more = divmod(width, group.width)
    last = list(order)[group.width - more :]
    return tuple(sorted([*range(group.width)] * copies + last))


def _any_order(group: ChannelGroup, generator: torch.Generator) -> list[int]:
    """Some order in which the units of all blocks take turns."""
    blocks = group.blocks or (tuple(range(group.width)),)
    shuffled = [[block[place] for place in torch.randperm(len(block), generator=generator)] for block in blocks]
    return [unit for turn in zip(*shuffled, strict=True) for unit in turn]
