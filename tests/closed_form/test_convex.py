"""The convex programs: the closed form, the KKT conditions, and what happens where there is no optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.closed_form import conic
from fxprune.closed_form.conic import Attempt
from fxprune.closed_form.convex import Limit, Posynomial, check_feasible, solve, solve_densities
from fxprune.closed_form.water_filling import water_filling
from fxprune.errors import BudgetError, SolverError


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_one_budget_agrees_with_water_filling(share: float) -> None:
    costs = np.random.default_rng(0).uniform(1, 1000, 40)
    limit = share * costs.sum()
    found = solve_densities({"params": costs}, {"params": limit})
    assert found == pytest.approx(water_filling(costs, limit), rel=1e-4)


def test_two_budgets_satisfy_the_conditions_of_the_paper() -> None:
    generator = np.random.default_rng(1)
    costs = {kind: generator.uniform(1, 100, 30) for kind in ("params", "flops")}
    limits = {"params": 0.4 * costs["params"].sum(), "flops": 0.4 * costs["flops"].sum()}
    eye = np.eye(30)
    solution = solve(
        np.ones(30),
        [Limit(kind, Posynomial(costs[kind], eye), limits[kind]) for kind in limits],
        np.full(30, -np.inf),
        np.zeros(30),
    )
    prices = {kind: solution.multipliers[kind] / limits[kind] for kind in limits}
    assert min(prices.values()) > 0
    water = 1 / sum(prices[kind] * costs[kind] for kind in limits)
    assert np.exp(solution.logs) == pytest.approx(np.minimum(1, water), rel=1e-4)


def drawn(seed: int, groups: int, terms: int) -> tuple[np.ndarray, list[Limit], np.ndarray, np.ndarray]:
    """A program with limits that bind."""
    generator = np.random.default_rng(seed)
    upper = np.log(generator.integers(4, 64, groups))
    lower = np.zeros(groups)
    limits = []
    for name in ("params", "flops"):
        exponents = generator.integers(0, 2, (terms, groups)) * (generator.random((terms, groups)) < 3 / groups)
        cost = Posynomial(
            generator.uniform(0.1, 10, terms + groups), np.vstack([exponents, np.eye(groups)]).astype(float)
        )
        low, high = cost.at(lower), cost.at(upper)
        limits.append(Limit(name, cost, low + generator.uniform(0.05, 0.8) * (high - low)))
    return generator.uniform(0.5, 3, groups), limits, lower, upper


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_optimum_of_a_geometric_program_satisfies_kkt(seed: int, groups: int) -> None:
    weights, limits, lower, upper = drawn(seed, groups, 2 * groups)
    solution = solve(weights, limits, lower, upper)
    logs = solution.logs
    assert (logs >= lower).all() and (logs <= upper).all()
    pull = np.zeros(groups)
    for limit in limits:
        multiplier, spent = solution.multipliers[limit.name], limit.cost.at(logs)
        assert spent <= limit.most * (1 + 1e-6)
        assert multiplier >= -1e-6
        assert multiplier * (1 - spent / limit.most) == pytest.approx(0, abs=1e-4)  # a limit with room has no price
        pull += multiplier * limit.cost.gradient(logs) / spent
    gain = weights - pull  # of a step up: none where a width is free, no loss at its bound above, no gain at that below
    scale = weights.max()
    assert (gain[logs < upper - 1e-3] <= 1e-3 * scale).all()
    assert (gain[logs > lower + 1e-3] >= -1e-3 * scale).all()


def test_the_solver_of_last_resort_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = drawn(3, 6, 10)
    expected = solve(*problem)
    monkeypatch.setattr(conic, "ATTEMPTS", ())
    found = solve(*problem)
    assert (expected.solver, found.solver) == ("Clarabel", "SLSQP")
    assert found.logs == pytest.approx(expected.logs, abs=1e-4)
    for name, multiplier in expected.multipliers.items():
        assert found.multipliers[name] == pytest.approx(multiplier, abs=1e-3)


def test_the_next_solver_is_asked_where_one_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conic, "ATTEMPTS", (Attempt("NOT_INSTALLED", 8, {}), *conic.ATTEMPTS))
    assert solve(*drawn(3, 6, 10)).solver == "Clarabel"


def test_a_program_that_no_solver_can_solve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conic, "ATTEMPTS", ())
    weights, limits, lower, upper = drawn(3, 6, 10)
    with pytest.raises(SolverError, match="SLSQP the last, solved the convex program of 6 variables"):
        solve(weights * np.nan, limits, lower, upper)


def test_limits_that_do_not_bind_need_no_solver() -> None:
    weights, limits, lower, upper = drawn(0, 5, 8)
    loose = [limit._replace(most=1e9) for limit in limits]
    assert solve(weights, loose, lower, upper).logs.tolist() == upper.tolist()


def test_the_tightest_impossible_limit_is_named() -> None:
    def limit(name: str, most: float) -> Limit:
        return Limit(name, Posynomial(np.array([10.0, 90.0]), np.array([[1.0], [0.0]])), most)

    with pytest.raises(BudgetError, match="params=50 cannot be reached: the smallest network has 100"):
        check_feasible([limit("flops", 80), limit("params", 50), limit("memory", 200)], np.zeros(1))


@pytest.mark.parametrize("cost", [np.nan, np.inf, 0.0, -1.0])
def test_costs_must_be_numbers_above_zero(cost: float) -> None:
    with pytest.raises(BudgetError, match=f"params: a cost of {cost} cannot be limited"):
        solve_densities({"params": np.array([1.0, cost])}, {"params": 1.0})


def test_growth_that_nothing_bounds_is_refused() -> None:
    free: Any = np.array([np.inf, np.inf])
    limit = Limit("params", Posynomial(np.array([1.0]), np.array([[1.0, 0.0]])), 10.0)
    with pytest.raises(BudgetError, match="no limit bounds the growth of some group"):
        solve(np.ones(2), [limit], np.zeros(2), free)


def test_long_sums_are_told_in_parts() -> None:
    """A densely connected network: a hundred layers, each of which reads what all before it wrote."""
    groups = 100
    rows = [np.eye(groups)[i] + np.eye(groups)[j] for i in range(groups) for j in range(i)]
    cost = Posynomial(np.random.default_rng(0).uniform(1, 100, len(rows)), np.array(rows))
    upper = np.full(groups, np.log(32.0))
    limit = Limit("flops", cost, 0.4 * cost.at(upper))
    solution = solve(np.ones(groups), [limit], np.zeros(groups), upper)
    assert solution.solver == "Clarabel"
    assert cost.at(solution.logs) == pytest.approx(limit.most, rel=1e-6)
    gain = 1 - solution.multipliers["flops"] * cost.gradient(solution.logs) / limit.most
    assert (gain[solution.logs < upper - 1e-3] <= 1e-3).all()
    assert (gain[solution.logs > 1e-3] >= -1e-3).all()


def test_two_hundred_layers_are_solved() -> None:
    costs = {kind: np.random.default_rng(kind == "flops").uniform(1, 1e6, 200) for kind in ("params", "flops")}
    limits = {kind: 0.3 * cost.sum() for kind, cost in costs.items()}
    densities = solve_densities(costs, limits)
    assert all(costs[kind] @ densities <= limits[kind] * (1 + 1e-6) for kind in costs)
    assert max(costs[kind] @ densities / limits[kind] for kind in costs) == pytest.approx(1)
