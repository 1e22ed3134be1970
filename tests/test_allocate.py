"""Allocation: budgets are met, never overshot, and used up; greedy beats uniform; refusals say how far one can go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxprune.allocate import METHODS, allocate, frozen_groups
from fxprune.capture import capture
from fxprune.closed_form.removal import Removal
from fxprune.cost import cost
from fxprune.coupling import analyze
from fxprune.errors import BudgetError, PlanError
from fxprune.importance import magnitude
from fxprune.types import Budget, Coupling
from tests.networks import NETWORKS, build, images

GRAPHS: dict[str, fx.GraphModule] = {}


def problem(name: str) -> tuple[fx.GraphModule, Coupling, dict[str, Removal]]:
    gm = GRAPHS.setdefault(name, capture(build(name), (images(),)))
    coupling = analyze(gm)
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())
    return gm, coupling, {group.name: magnitude(group, tensors, ()) for group in coupling.groups}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    method=st.sampled_from(sorted(METHODS)),
    flops=st.none() | st.floats(0.5, 1),
    params=st.floats(0.5, 1),
)
def test_a_budget_is_met_and_used_up(name: str, method: str, flops: float | None, params: float) -> None:
    gm, coupling, removals = problem(name)
    costs, budget = cost(gm, coupling), Budget(flops=flops, params=params)
    widths = allocate(costs, coupling, removals, budget, method=method)
    limits, spent = budget.absolute(costs.evaluate()), costs.evaluate(widths)
    assert all(spent[kind] <= limit for kind, limit in limits.items())
    for group in coupling.groups:
        assert widths[group.name] % group.step == 0 and widths[group.name] > 0
        if widths[group.name] < group.width:
            more = costs.evaluate({**widths, group.name: widths[group.name] + group.step})
            assert any(more[kind] > limit for kind, limit in limits.items()), f"another {group.name} would still fit"


def test_the_whole_network_is_kept_where_it_fits() -> None:
    gm, coupling, removals = problem("Residual")
    for method in METHODS:
        widths = allocate(cost(gm, coupling), coupling, removals, Budget(flops=1.0), method=method)
        assert widths == {group.name: group.width for group in coupling.groups}


def test_greedy_takes_what_costs_least() -> None:
    gm, coupling, removals = problem("Plain")
    free = "conv1.weight"
    removals = {name: r if name != free else Removal(r.order, (0.0,) * len(r.errors)) for name, r in removals.items()}
    widths = allocate(cost(gm, coupling), coupling, removals, Budget(flops=0.6))
    assert widths[free] < 6 and all(widths[g.name] == g.width for g in coupling.groups if g.name != free)


def test_a_cliff_behind_a_flat_stretch_is_seen() -> None:
    """A group whose first step is dear and whose others are free is cheaper than one that is dear all the way."""
    gm, coupling, removals = problem("Plain")
    steep = {name: tuple(10.0 * i for i in range(len(r.errors))) for name, r in removals.items()}
    steep["conv1.weight"] = (0.0, *[1.0] * (len(removals["conv1.weight"].errors) - 1))
    removals = {name: Removal(r.order, steep[name]) for name, r in removals.items()}
    widths = allocate(cost(gm, coupling), coupling, removals, Budget(flops=0.6))
    assert widths["conv2.weight"] == 4 and widths["conv1.weight"] < 5


def test_uniform_looks_at_ratios_alone() -> None:
    gm, coupling, removals = problem("Depthwise")
    budget, costs = Budget(flops=0.6), cost(gm, coupling)
    widths = allocate(costs, coupling, removals, budget, method="uniform")
    twisted = {
        name: Removal(r.order, tuple(i**3 for i in range(len(r.errors))), r.step) for name, r in removals.items()
    }
    assert allocate(costs, coupling, twisted, budget, method="uniform") == widths
    assert sum(widths[group.name] < group.width for group in coupling.groups) > 1


@pytest.mark.parametrize("multiple_of", [2, 4])
def test_widths_are_multiples_or_whole(multiple_of: int) -> None:
    for name in ("Plain", "Grouped", "Depthwise"):
        gm, coupling, removals = problem(name)
        widths = allocate(cost(gm, coupling), coupling, removals, Budget(params=0.8), multiple_of=multiple_of)
        for group in coupling.groups:
            assert widths[group.name] == group.width or widths[group.name] % multiple_of == 0


def test_max_ratio_limits_every_group() -> None:
    gm, coupling, removals = problem("Residual")
    costs = cost(gm, coupling)
    widths = allocate(costs, coupling, removals, Budget(flops=0.55), max_ratio=0.5)
    assert all(widths[group.name] >= group.width / 2 for group in coupling.groups)
    with pytest.raises(
        BudgetError, match=r"flops=\S+ \(20.0% of [\d,]+\) cannot be reached: the smallest is [\d,]+ \("
    ):
        allocate(costs, coupling, removals, Budget(flops=0.2), max_ratio=0.5)


def test_nothing_goes_to_zero() -> None:
    gm, coupling, removals = problem("Grouped")
    costs = cost(gm, coupling)
    least = costs.evaluate({group.name: group.step for group in coupling.groups})["flops"]
    widths = allocate(costs, coupling, removals, Budget(flops=float(least)), max_ratio=1.0)
    assert widths == {group.name: group.step for group in coupling.groups}


@pytest.mark.parametrize("pattern", ["conv1.weight", "conv1", "conv?.weight", "conv[12]*"])
def test_what_is_frozen_stays_whole(pattern: str) -> None:
    gm, coupling, removals = problem("Plain")
    widths = allocate(cost(gm, coupling), coupling, removals, Budget(params=0.9), freeze=[pattern])
    assert widths["conv1.weight"] == 6


def test_a_module_freezes_every_group_that_it_touches() -> None:
    _, coupling, _ = problem("Residual")
    assert frozen_groups(coupling, ["conv1"]) == {"conv1.0.weight", "stem.0.weight"}
    assert frozen_groups(coupling, "head") == {"stem.0.weight"}
    assert frozen_groups(coupling, ()) == set()


def test_what_is_not_known_is_refused() -> None:
    gm, coupling, removals = problem("Plain")
    costs, budget = cost(gm, coupling), Budget(flops=0.5)
    with pytest.raises(PlanError, match="freeze='nothing' matches no parameter, module or group"):
        allocate(costs, coupling, removals, budget, freeze=["nothing"])
    with pytest.raises(PlanError, match="allocation 'luck' is not known; there are: uniform, greedy"):
        allocate(costs, coupling, removals, budget, method="luck")
    with pytest.raises(PlanError, match=r"max_ratio=1.5 must be in \[0, 1\]"):
        allocate(costs, coupling, removals, budget, max_ratio=1.5)
    with pytest.raises(PlanError, match="multiple_of=0 at least 1"):
        allocate(costs, coupling, removals, budget, multiple_of=0)
