"""Allocation: budgets are met, never overshot, and used up; as small as an error allows; refusals say how far one can
go."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.allocate import METHODS, Problem, allocate, allocator, foretold, frozen_groups
from fxprune.budget import Budget
from fxprune.capture import capture
from fxprune.closed_form.removal import Removal
from fxprune.cost import Cost, cost
from fxprune.coupling import analyze
from fxprune.errors import BudgetError, PlanError
from fxprune.importance import magnitude
from fxprune.types import Coupling
from tests.networks import NETWORKS, build, images


@cache
def problem(name: str) -> tuple[Cost, Coupling, dict[str, Removal]]:
    gm = capture(build(name), (images(),))
    coupling = analyze(gm)
    tensors = dict(gm.named_parameters()) | dict(gm.named_buffers())
    return cost(gm, coupling), coupling, {group.name: magnitude(group, tensors, ()) for group in coupling.groups}


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    method=st.sampled_from(sorted(METHODS)),
    flops=st.none() | st.floats(0.5, 1),
    params=st.floats(0.5, 1),
)
def test_a_budget_is_met_and_used_up(name: str, method: str, flops: float | None, params: float) -> None:
    costs, coupling, removals = problem(name)
    budget = Budget(flops=flops, params=params)
    widths = allocate(costs, coupling, removals, budget, method=method)
    limits, spent = budget.absolute(costs.evaluate()), costs.evaluate(widths)
    assert all(spent[kind] <= limit for kind, limit in limits.items())
    for group in coupling.groups:
        assert widths[group.name] % group.step == 0 and widths[group.name] > 0
        if widths[group.name] < group.width:
            more = costs.evaluate({**widths, group.name: widths[group.name] + group.step})
            assert any(more[kind] > limit for kind, limit in limits.items()), f"another {group.name} would still fit"


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(NETWORKS)),
    method=st.sampled_from(sorted(METHODS)),
    max_error=st.floats(0.01, 1),
    multiple_of=st.sampled_from([1, 2]),
)
def test_an_error_is_kept_and_used_up(name: str, method: str, max_error: float, multiple_of: int) -> None:
    costs, coupling, removals = problem(name)
    widths = allocate(
        costs, coupling, removals, Budget(max_error=max_error), method=method, multiple_of=multiple_of, max_ratio=0.8
    )
    assert foretold(removals, widths) <= max_error
    for group in coupling.groups:
        step = math.lcm(multiple_of, group.step)
        less = (widths[group.name] - 1) // step * step
        if less >= max(group.step, 0.2 * group.width):
            assert foretold(removals, {**widths, group.name: less}) > max_error, f"{group.name} could give more"


@pytest.mark.parametrize("method", METHODS)
def test_the_other_limits_hold_beside_an_error(method: str) -> None:
    costs, coupling, removals = problem("Residual")
    budget = Budget(max_error=1.2, params=0.6)
    widths = allocate(costs, coupling, removals, budget, method=method)
    assert foretold(removals, widths) <= 1.2
    assert costs.evaluate(widths)["params"] <= 0.6 * costs.evaluate()["params"]
    alone = allocate(costs, coupling, removals, Budget(max_error=1.2), method=method)
    assert costs.evaluate(alone)["flops"] <= costs.evaluate(widths)["flops"]
    with pytest.raises(
        BudgetError,
        match=r"max_error=0.01 and params=[\d,]+ contradict: within the limits an error of 0\.\d+ is foretold",
    ):
        allocate(costs, coupling, removals, Budget(max_error=0.01, params=0.6), method=method)


def test_the_smaller_the_error_the_larger_the_network() -> None:
    costs, coupling, removals = problem("Depthwise")
    errors = [0.05, 0.2, 0.5, 1.0, 2.0]
    flops = [
        costs.evaluate(allocate(costs, coupling, removals, Budget(max_error=error), method="dynamic"))["flops"]
        for error in errors
    ]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) > 3


def test_what_is_foretold_is_the_sum_of_the_curves() -> None:
    removals = {"a": Removal((0, 1, 2, 3), (0.0, 0.5, 2.0), 2), "b": Removal((1, 0), (0.0, 0.25, 1.0))}
    assert foretold(removals, {"a": 4, "b": 2}) == 0
    assert foretold(removals, {"a": 2, "b": 1}) == 0.75
    assert foretold(removals, {"a": 2}) == 0.5
    assert foretold(removals, {"a": 2, "c": 3}) == 0.5  # a group without a curve never shrinks


def test_an_allocator_is_added_by_a_decorator() -> None:
    @allocator("narrowest")
    def narrowest(problem: Problem) -> dict[str, int]:
        return {name: ladder[-1] for name, ladder in problem.ladders.items()}

    costs, coupling, removals = problem("Plain")
    try:
        widths = allocate(costs, coupling, removals, Budget(flops=0.6), method="narrowest")
        assert 0.5 < costs.evaluate(widths)["flops"] / costs.evaluate()["flops"] <= 0.6  # what is left over is filled
        small = allocate(costs, coupling, removals, Budget(max_error=0.5), method="narrowest")
        assert foretold(removals, small) <= 0.5

        @allocator("everything")
        def everything(problem: Problem) -> dict[str, int]:
            return {}

        with pytest.raises(PlanError, match="allocator 'everything' chose widths that exceed a limit"):
            allocate(costs, coupling, removals, Budget(flops=0.6), method="everything")

        @allocator("odd")
        def odd(problem: Problem) -> dict[str, int]:
            return {"conv1.weight": 7}

        with pytest.raises(PlanError, match="conv1.weight: width 7 is not among those that this group may have"):
            allocate(costs, coupling, removals, Budget(flops=0.6), method="odd")
    finally:
        for name in ("narrowest", "everything", "odd"):
            METHODS.pop(name, None)


def test_the_whole_network_is_kept_where_it_fits() -> None:
    costs, coupling, removals = problem("Residual")
    for method in METHODS:
        widths = allocate(costs, coupling, removals, Budget(flops=1.0), method=method)
        assert widths == {group.name: group.width for group in coupling.groups}


def test_greedy_takes_what_costs_least() -> None:
    costs, coupling, removals = problem("Plain")
    free = "conv1.weight"
    removals = {name: r if name != free else Removal(r.order, (0.0,) * len(r.errors)) for name, r in removals.items()}
    widths = allocate(costs, coupling, removals, Budget(flops=0.6))
    assert widths[free] < 6 and all(widths[g.name] == g.width for g in coupling.groups if g.name != free)


def test_a_cliff_behind_a_flat_stretch_is_seen() -> None:
    """A group whose first step is dear and whose others are free is cheaper than one that is dear all the way."""
    costs, coupling, removals = problem("Plain")
    steep = {name: tuple(10.0 * i for i in range(len(r.errors))) for name, r in removals.items()}
    steep["conv1.weight"] = (0.0, *[1.0] * (len(removals["conv1.weight"].errors) - 1))
    removals = {name: Removal(r.order, steep[name]) for name, r in removals.items()}
    widths = allocate(costs, coupling, removals, Budget(flops=0.6))
    assert widths["conv2.weight"] == 4 and widths["conv1.weight"] < 5


@pytest.mark.parametrize("method", ["greedy", "dynamic"])
@pytest.mark.parametrize("overflowed", [float("inf"), float("nan")])
def test_an_error_that_overflowed_is_kept_away_from(method: str, overflowed: float) -> None:
    costs, coupling, removals = problem("Plain")
    curve = removals["conv2.weight"]
    broken = {**removals, "conv2.weight": Removal(curve.order, (*curve.errors[:2], *[overflowed] * 3))}
    widths = allocate(costs, coupling, broken, Budget(flops=0.5), method=method)
    assert widths["conv2.weight"] >= 3


def test_uniform_looks_at_ratios_alone() -> None:
    costs, coupling, removals = problem("Depthwise")
    budget = Budget(flops=0.6)
    widths = allocate(costs, coupling, removals, budget, method="uniform")
    twisted = {
        name: Removal(r.order, tuple(i**3 for i in range(len(r.errors))), r.step) for name, r in removals.items()
    }
    assert allocate(costs, coupling, twisted, budget, method="uniform") == widths
    assert sum(widths[group.name] < group.width for group in coupling.groups) > 1


@pytest.mark.parametrize("multiple_of", [2, 4])
def test_widths_are_multiples_or_whole(multiple_of: int) -> None:
    for name in ("Plain", "Grouped", "Depthwise"):
        costs, coupling, removals = problem(name)
        widths = allocate(costs, coupling, removals, Budget(params=0.8), multiple_of=multiple_of)
        for group in coupling.groups:
            assert widths[group.name] == group.width or widths[group.name] % multiple_of == 0


def test_max_ratio_limits_every_group() -> None:
    costs, coupling, removals = problem("Residual")
    widths = allocate(costs, coupling, removals, Budget(flops=0.55), max_ratio=0.5)
    assert all(widths[group.name] >= group.width / 2 for group in coupling.groups)
    with pytest.raises(
        BudgetError, match=r"flops=\S+ \(20.0% of [\d,]+\) cannot be reached: the smallest is [\d,]+ \("
    ):
        allocate(costs, coupling, removals, Budget(flops=0.2), max_ratio=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_groups(method: str) -> None:
    costs, coupling, _ = problem("Plain")
    empty = replace(coupling, groups=())
    assert allocate(costs, empty, {}, Budget(flops=1.0, max_error=0.1), method=method) == {}
    with pytest.raises(BudgetError, match="cannot be reached"):
        allocate(costs, empty, {}, Budget(flops=0.5), method=method)


def test_nothing_goes_to_zero() -> None:
    costs, coupling, removals = problem("Grouped")
    least = costs.evaluate({group.name: group.step for group in coupling.groups})["flops"]
    widths = allocate(costs, coupling, removals, Budget(flops=float(least)), max_ratio=1.0)
    assert widths == {group.name: group.step for group in coupling.groups}


@pytest.mark.parametrize("pattern", ["conv1.weight", "conv1", "conv?.weight", "conv[12]*"])
def test_what_is_frozen_stays_whole(pattern: str) -> None:
    costs, coupling, removals = problem("Plain")
    widths = allocate(costs, coupling, removals, Budget(params=0.9), freeze=[pattern])
    assert widths["conv1.weight"] == 6


def test_a_module_freezes_every_group_that_it_touches() -> None:
    _, coupling, _ = problem("Residual")
    assert frozen_groups(coupling, ["conv1"]) == {"conv1.0.weight", "stem.0.weight"}
    assert frozen_groups(coupling, "head") == {"stem.0.weight"}
    assert frozen_groups(coupling, ()) == set()


def test_what_is_not_known_is_refused() -> None:
    costs, coupling, removals = problem("Plain")
    budget = Budget(flops=0.5)
    with pytest.raises(PlanError, match="freeze='nothing' matches no parameter, module or group"):
        allocate(costs, coupling, removals, budget, freeze=["nothing"])
    with pytest.raises(PlanError, match="allocation 'luck' is not known; there are: uniform, greedy, dynamic"):
        allocate(costs, coupling, removals, budget, method="luck")
    with pytest.raises(PlanError, match=r"max_ratio=1.5 must be in \[0, 1\]"):
        allocate(costs, coupling, removals, budget, max_ratio=1.5)
    for wrong in (0, 2.0, True, "8"):
        with pytest.raises(PlanError, match=f"multiple_of={wrong!r} must be a whole number, at least 1"):
            allocate(costs, coupling, removals, budget, multiple_of=wrong)  # type: ignore[arg-type]
    for pattern in (None, 3, [None]):
        with pytest.raises(PlanError, match="freeze=.*: give names or globs of parameters, modules or groups"):
            allocate(costs, coupling, removals, budget, freeze=pattern)  # type: ignore[arg-type]
