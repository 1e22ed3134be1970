"""Choose: which units stay, so that the network fits a budget and loses least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.allocate import (
    LIKED,
    MAX_RATIO,
    allocate,
    check_reachable,
    check_widths,
    frozen_groups,
    ladders_of,
    method_called,
    patterns_of,
)
from fxprune.budget import Budget
from fxprune.calibrate.images import Calibration, calibration_for
from fxprune.calibrate.measure import measured
from fxprune.calibrate.observe import observe, systems_of
from fxprune.calibrate.sampling import THOROUGH, Sampling
from fxprune.calibrate.statistics import unlikeness
from fxprune.capture import capture_info
from fxprune.checkpoint import Checkpoint
from fxprune.closed_form.removal import Removal
from fxprune.cost import cost
from fxprune.coupling.check import check_plan
from fxprune.errors import BudgetError, CalibrationError, PlanError, RewriteError
from fxprune.importance import importance_called, needs_images
from fxprune.latency import Latencies, Timing
from fxprune.passes.base import (
    CALIBRATION,
    COST,
    COUPLING,
    PLAN,
    UNLIKENESS,
    analysed,
    refuse_not_finite,
    require_operators,
    state,
    without_guards,
)
from fxprune.passes.search import corrected_error, last_good, smallest_plan, trial_error
from fxprune.passes.timed import restore, timed_plan
from fxprune.progress import Progress, silent
from fxprune.select import select
from fxprune.types import Coupling, Plan
from fxprune.written import written

_SHOWN = 3  # reasons in an error


@dataclass(frozen=True, eq=False)
class Choose(PassBase):
    """Replaces nothing: analyses, scores, allocates and selects, and hands on the plan.

    budget: what the result may cost, or how much it may err.
    calibration: unlabelled images, in any form that `calibration_for` takes; None where an earlier pass has handed some
        on, or the importance needs none.
    importance, allocation: names of the registries.
    multiple_of, freeze, max_ratio: as in `allocate`.
    heads: whether attention loses whole heads, as in `analyze`.
    timing: how latencies are measured where the budget limits them.
    sampling: how much of the images is looked at.
    capacities: how much the parameters that stay count beside the foretold error, as in `allocate`; of several the last
        whose plan errs about as little as any on the held-out images, once least squares has made up for it.
    corrected: whether least squares follows, so that `max_error` is that of a plan after it.
    Fewer than four different images teach nothing: then magnitudes choose, at one ratio for all groups.
    Postcondition: the plan is possible, and the network that it leaves fits the budget.
    """

    budget: Budget
    calibration: Any = field(default=None, repr=False)
    importance: str = "second_order"
    allocation: str = "greedy"
    multiple_of: int | None = None
    freeze: Iterable[str] = ()
    max_ratio: float | None = None
    seed: int = 0
    heads: bool = False
    timing: Timing = field(default_factory=Timing)
    sampling: Sampling = THOROUGH
    capacities: Sequence[float] = (2.0,)
    corrected: bool = True
    checkpoint: Checkpoint = field(default_factory=Checkpoint, repr=False)
    progress: Progress = field(default=silent, repr=False)

    __repr__ = written

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", patterns_of(self.freeze))  # read several times
        if not isinstance(self.timing, Timing):
            raise BudgetError(f"timing must be a Timing, e.g. fxprune.Timing(batch=32), not {self.timing!r}")
        method_called(self.allocation)
        importance_called(self.importance)
        check_widths(self.multiple_of, self._most)
        object.__setattr__(self, "capacities", tuple(self.capacities))
        if not self.capacities or not all(0 <= capacity < math.inf for capacity in self.capacities):
            raise PlanError(f"capacities={self.capacities!r}: one or more numbers of at least 0 are needed")

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph comes from `capture`, and there is data where data is needed."""
        capture_info(graph_module)
        require_own_plan(graph_module, "Choose")
        seen = self.calibration is not None or CALIBRATION in state(graph_module)
        wanted = "importance" if needs_images(self.importance) else "budget" if self.budget.max_error else ""
        if wanted and not seen:
            raise CalibrationError(
                f"calibration is missing, and this {wanted} needs it: give a few hundred unlabelled images, or choose "
                "the recipe 'datafree', which makes images from the network itself, or 'magnitude', which looks at "
                "the weights alone and corrects nothing"
            )

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Hand on coupling, cost, calibration and plan; the graph stays as it is."""
        found = state(graph_module)
        if PLAN in found:
            return PassResult(graph_module, False)
        require_operators(graph_module, "Choose")
        coupling = analysed(graph_module, self.heads)
        refuse_not_finite(graph_module)
        if not coupling.groups:
            raise PlanError(nothing_shrinks(coupling))
        found[COUPLING], found[COST] = coupling, cost(graph_module, coupling)
        check_reachable(  # before the images are read
            found[COST],
            coupling,
            self.budget,
            multiple_of=self.multiple_of,
            freeze=self.freeze,
            max_ratio=self._most,
        )
        if self.calibration is not None:
            found[CALIBRATION] = calibration_for(graph_module, self.calibration, seed=self.seed)
        self._look(graph_module)
        known = self.checkpoint.load("choose", "plan")
        found[PLAN] = self._restored(graph_module, known) if known else self._chosen(graph_module)
        return PassResult(graph_module, False)

    def _look(self, gm: fx.GraphModule) -> None:
        """What the images say before anything is learned from them. CalibrationError where they cannot judge."""
        found = state(gm)
        calibration: Calibration | None = found.get(CALIBRATION)
        if calibration is None:
            return
        if self.budget.max_error is not None and not calibration.held_out:
            raise CalibrationError(
                f"max_error={self.budget.max_error} is the error on held-out images, and of so few different ones "
                f"({calibration.distinct or calibration.count}) none can be held out: give a few hundred"
            )
        if self.calibration is not None:
            found[UNLIKENESS] = unlikeness(gm, calibration)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The plan is possible, and fits."""
        check_fits(graph_module, self.budget)

    def _chosen(self, gm: fx.GraphModule) -> Plan:
        """The plan, where the latency is limited with what was measured for it, and kept for a run that goes on."""
        with without_guards(gm):
            decide, kept = self._decision(gm), {}

        def decided(budget: Budget) -> Plan:
            with without_guards(gm):  # not around what is timed: a compiler lives by its guards
                return decide(budget)

        if self.budget.latency is None:
            plan = decided(self.budget)
        else:
            heard, ladders = partial(self.progress, "latency"), self._ladders(state(gm)[COUPLING])
            plan, latencies = timed_plan(
                gm, decided, self.budget, self.timing, ladders, heard, heads=self.heads, seed=self.seed
            )
            kept = {"latencies": latencies.to_json()}
        self.checkpoint.save("choose", {"plan": plan.to_json(), **kept})
        return plan

    def _ladders(self, coupling: Coupling) -> dict[str, list[int]]:
        """Widths that each group may have, of which some are timed."""
        return ladders_of(coupling, self.multiple_of, frozen_groups(coupling, self.freeze), self._most, min(LIKED))

    @property
    def _most(self) -> float:
        """The largest share of a group that may go."""
        return MAX_RATIO if self.max_ratio is None else self.max_ratio

    def _restored(self, gm: fx.GraphModule, known: Mapping[str, str]) -> Plan:
        """The plan of an earlier run, and its latencies."""
        if "latencies" in known:
            restore(gm, self.timing, self.heads, Latencies.from_json(known["latencies"]))
        return Plan.from_json(known["plan"])

    def _decision(self, gm: fx.GraphModule) -> Callable[[Budget], Plan]:
        """From a budget to a plan: scores, allocates and selects."""
        coupling: Coupling = state(gm)[COUPLING]
        removals = self._removals(gm, coupling, state(gm).get(CALIBRATION))
        settled: list[float] = []  # the capacity, by the first budget that is asked for

        def planned(budget: Budget) -> Plan:
            if not settled:
                plans = [self._plan(gm, removals, budget, capacity) for capacity in self.capacities]
                best = last_good(gm, plans, self.seed, partial(self.progress, "compare"))
                settled.append(self.capacities[best])
                return plans[best]
            return self._plan(gm, removals, budget, settled[0])

        if self.budget.max_error is None:
            return planned
        by_itself, after_all = partial(trial_error, gm, steps=()), partial(corrected_error, gm, seed=self.seed)
        error_of = after_all if self.corrected else by_itself
        return lambda budget: smallest_plan(gm, planned, budget, error_of, partial(self.progress, "search"))

    def _plan(self, gm: fx.GraphModule, removals: Mapping[str, Removal], budget: Budget, capacity: float) -> Plan:
        """The units that stay by these curves."""
        coupling = state(gm)[COUPLING]
        widths = allocate(
            state(gm)[COST],
            coupling,
            removals,
            budget,
            method="uniform" if self._sees_too_little(gm) else self.allocation,
            multiple_of=self.multiple_of,
            freeze=self.freeze,
            max_ratio=self._most,
            capacity=capacity,
        )
        return replace(select(coupling, removals, widths, input_specs(gm)), heads=self.heads)

    def _sees_too_little(self, gm: fx.GraphModule) -> bool:
        """Whether there are images, and what they say would be of them alone."""
        calibration: Calibration | None = state(gm).get(CALIBRATION)
        return calibration is not None and not calibration.teaches

    def _removals(
        self, gm: fx.GraphModule, coupling: Coupling, calibration: Calibration | None
    ) -> Mapping[str, Removal]:
        """For each group the order in which its units leave, and the error at every width."""
        score, tensors = importance_called(self.importance), tensors_of(gm)
        if self._sees_too_little(gm):
            score, calibration = importance_called("magnitude"), None
        if calibration is None:
            return {group.name: score(group, tensors, ()) for group in coupling.groups}

        observing, measuring = (partial(self.progress, stage) for stage in ("observe", "measure"))
        observed = observe(gm, coupling, calibration, sampling=self.sampling, seed=self.seed, progress=observing)
        removals = {}
        for done, group in enumerate(coupling.groups):
            removals[group.name] = score(group, tensors, systems_of(group, coupling, observed, gm))
            self.progress("score", done + 1, len(coupling.groups))
        return measured(gm, coupling, removals, observed, calibration, sampling=self.sampling, progress=measuring)


def check_fits(gm: fx.GraphModule, budget: Budget) -> None:
    """Raise PlanError where the plan that is handed on is impossible, BudgetError where it leaves too much."""
    found = state(gm)
    plan, kinds = check_plan(found[COUPLING], found[PLAN]), budget.kinds
    spent = found[COST].evaluate(plan.counts, kinds)
    for kind, limit in budget.absolute(found[COST].evaluate(kinds=kinds)).items():
        if spent[kind] > limit:
            raise BudgetError(
                f"the plan of this graph costs {spent[kind]:,} {kind}, and the budget is {limit:,.0f}: where the plan "
                "was made for another budget, call fxprune.capture anew"
            )


def require_own_plan(gm: fx.GraphModule, reader: str) -> None:
    """Raise RewriteError where there is a plan without its cost: one that no pass has chosen."""
    if PLAN in state(gm) and COST not in state(gm):
        raise RewriteError(
            f"{reader} came too late: there is a plan already, or Shrink has run. Capture anew for another"
        )


def tensors_of(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    return {**dict(gm.named_parameters(remove_duplicate=False)), **dict(gm.named_buffers(remove_duplicate=False))}


def input_specs(gm: fx.GraphModule) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the example inputs, as a plan records them."""
    tensors = [leaf for leaf in capture_info(gm).args if isinstance(leaf, Tensor)]
    return [(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in tensors]


def nothing_shrinks(coupling: Coupling) -> str:
    """Why a network without groups is refused."""
    reasons = list(dict.fromkeys(coupling.held.values())) or ["it has no parameters"]
    text = f"nothing in this network can shrink: {'; '.join(reasons[:_SHOWN])}"
    text += f"; and {len(reasons) - _SHOWN} more reasons, in Coupling.held" if len(reasons) > _SHOWN else ""
    if any("aten.convolution.default" in reason for reason in reasons):
        text += ". Convolutions are not analysed once they are decomposed: give the program before run_decompositions()"
    return text
