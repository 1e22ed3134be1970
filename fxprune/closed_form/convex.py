"""The convex programs of pruning at initialisation: layer densities, and widths as a geometric program."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import BudgetError, SolverError

Numbers = NDArray[np.float64]
# In this order, each where those before it give up; then SLSQP, without cvxpy. The objective is flat about its optimum:
# widths to four digits take a gap of ten.
SOLVERS: tuple[tuple[str, dict[str, float]], ...] = (
    ("CLARABEL", dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)),
    ("CLARABEL", {}),
    ("SCS", {}),
)


class Posynomial(NamedTuple):
    """A sum of products of powers: sum_t factors[t] * prod_g x_g ** exponents[t, g], with factors above 0."""

    factors: Numbers
    exponents: Numbers

    def at(self, logs: Numbers) -> float:
        """Its value where log x = logs."""
        return float(self.factors @ np.exp(self.exponents @ logs))

    def gradient(self, logs: Numbers) -> Numbers:
        """Its derivatives by log x, [groups]."""
        return np.asarray((self.factors * np.exp(self.exponents @ logs)) @ self.exponents)


class Limit(NamedTuple):
    """A posynomial that must not exceed a number; `name` is for messages."""

    name: str
    cost: Posynomial
    most: float


@dataclass(frozen=True)
class Solution:
    """Where a program is optimal.

    logs: of the variables, float64.
    multipliers: of the limits, by name: the objective that another per cent of the limit would bring is a hundredth
        of it.
    solver: which one found it.
    """

    logs: Numbers
    multipliers: dict[str, float]
    solver: str


def solve_densities(costs: dict[str, Numbers], limits: dict[str, float], most: float | None = 1.0) -> Numbers:
    """The densities p of least loss: max sum log p, costs . p <= limit for every kind, 0 < p <= most: [layers].

    costs: of each layer at density 1, by kind, above 0. most: None for no bound.

    It is the geometric program of one variable a layer. Source: arXiv 2203.02549.
    """
    layers = len(next(iter(costs.values())))
    bounded = [Limit(kind, Posynomial(costs[kind], np.eye(layers)), limit) for kind, limit in limits.items()]
    upper = np.full(layers, np.inf if most is None else np.log(most))
    return np.exp(solve(np.ones(layers), bounded, np.full(layers, -np.inf), upper).logs)


def solve(weights: Numbers, limits: Sequence[Limit], lower: Numbers, upper: Numbers) -> Solution:
    """Maximise weights . u under posynomial limits in exp(u) and lower <= u <= upper: a geometric program in u = log x.

    weights: at least 0. lower and upper: may be infinite.

    The log of a posynomial is a log-sum-exp of affine functions of u, which is convex: the optimum is global.

    Raises BudgetError, naming the tightest limit, where not even `lower` keeps them all, where a cost is not finite, or
    where something costs nothing and has no bound; SolverError where none finds the optimum. `Solution.solver` says
    which one did.
    """
    _check_finite(limits)
    check_feasible(limits, lower)
    program = _Program(np.asarray(weights), tuple(limits), lower, upper)
    if np.isfinite(upper).all() and all(limit.cost.at(upper) <= limit.most for limit in limits):
        return Solution(upper.copy(), dict.fromkeys((limit.name for limit in limits), 0.0), "none: nothing binds")
    for solver, options in SOLVERS:
        found = program.solved_by(solver, options)
        if found is not None:
            return found
    return program.solved_by_descent()


def nearest(
    weights: Numbers, limits: Sequence[Limit], lower: Numbers, upper: Numbers, to: Numbers, least: float
) -> Numbers:
    """The point nearest to `to` at which the objective weights . u is still `least`, within limits and bounds.

    Distances are squared and weighted by `weights`. A program of `solve` may be nearly flat in some directions; this
    says which of its nearly optimal points to take. Where no solver finds it: SolverError.
    """
    program = _Program(np.asarray(weights), tuple(limits), lower, upper)
    for solver, options in SOLVERS:
        found = program.nearest_by(solver, options, to, least)
        if found is not None:
            return found
    raise SolverError(f"no solver found the nearly optimal point nearest to the original, of {len(weights)} variables")


def check_feasible(limits: Iterable[Limit], lower: Numbers) -> None:
    """Raise BudgetError, naming the tightest limit, where even the smallest network exceeds one."""
    least = {limit.name: limit.cost.at(np.maximum(lower, -1e3)) for limit in limits}  # e to that is 0
    broken = [limit for limit in limits if least[limit.name] > limit.most * (1 + 1e-12)]
    if broken:
        worst = max(broken, key=lambda limit: least[limit.name] / limit.most)
        raise BudgetError(
            f"{worst.name}={worst.most:,.0f} cannot be reached: the smallest network has {least[worst.name]:,.0f}; "
            "what is frozen or held, max_ratio and multiple_of decide how far one can go"
        )


def _check_finite(limits: Iterable[Limit]) -> None:
    """Raise BudgetError where a cost is no number above 0."""
    for limit in limits:
        wrong = limit.cost.factors[~(np.isfinite(limit.cost.factors) & (limit.cost.factors > 0))]
        if len(wrong):
            raise BudgetError(f"{limit.name}: a cost of {wrong[0]} cannot be limited: costs are finite and above 0")


@dataclass(frozen=True, eq=False)
class _Program:
    weights: Numbers
    limits: tuple[Limit, ...]
    lower: Numbers
    upper: Numbers

    @cached_property
    def _stated(self) -> tuple[Any, list[Any], list[Any]]:
        """The variable, the constraint of each limit, and the bounds."""
        import cvxpy  # takes seconds, and is needed here alone

        u = cvxpy.Variable(len(self.weights))
        costs = [
            cvxpy.log_sum_exp(limit.cost.exponents @ u + np.log(limit.cost.factors / limit.most)) <= 0
            for limit in self.limits
        ]
        below, above = np.isfinite(self.lower), np.isfinite(self.upper)
        bounds = [u[below] >= self.lower[below], u[above] <= self.upper[above]]
        return u, costs, [bound for bound in bounds if bound.size]

    def solved_by(self, solver: str, options: Mapping[str, float]) -> Solution | None:
        """The solution; None where this solver gives up. Raises BudgetError where the objective has no bound."""
        import cvxpy

        u, costs, bounds = self._stated
        status = _status(cvxpy.Problem(cvxpy.Maximize(self.weights @ u), [*costs, *bounds]), solver, options)
        if status == cvxpy.UNBOUNDED:
            raise BudgetError("no limit bounds the growth of some group: limit flops= and params= as well")
        if status != cvxpy.OPTIMAL:
            return None
        multipliers = {
            limit.name: float(np.max(constraint.dual_value))
            for limit, constraint in zip(self.limits, costs, strict=True)
        }
        return Solution(np.clip(np.asarray(u.value), self.lower, self.upper), multipliers, solver.capitalize())

    def nearest_by(self, solver: str, options: Mapping[str, float], to: Numbers, least: float) -> Numbers | None:
        """What `nearest` looks for; None where this solver gives up."""
        import cvxpy

        u, costs, bounds = self._stated
        distance = cvxpy.sum(cvxpy.multiply(self.weights, cvxpy.square(u - to)))
        problem = cvxpy.Problem(cvxpy.Minimize(distance), [*costs, *bounds, self.weights @ u >= least])
        if _status(problem, solver, options) != cvxpy.OPTIMAL:
            return None
        return np.asarray(np.clip(np.asarray(u.value), self.lower, self.upper))

    def solved_by_descent(self) -> Solution:
        """The solution by sequential least squares, for when the conic solvers fail."""
        from scipy.optimize import Bounds, minimize  # beside the import of cvxpy, which brings it

        bounds = Bounds(np.maximum(self.lower, -50), np.minimum(self.upper, 50))
        found = minimize(
            lambda u: -self.weights @ u,
            x0=bounds.lb,
            jac=lambda _: -self.weights,
            bounds=bounds,
            constraints=[
                {"type": "ineq", "fun": lambda u, to=limit: -np.log(to.cost.at(u) / to.most),
                 "jac": lambda u, to=limit: -to.cost.gradient(u) / to.cost.at(u)}
                for limit in self.limits
            ],
            options={"maxiter": 1000, "ftol": 1e-12},
        )  # fmt: skip
        if not found.success:
            raise SolverError(
                f"no solver, SLSQP the last, solved the convex program of {len(self.weights)} variables: "
                f"{found.message}"
            )
        return Solution(found.x, self._multipliers(found.x), "SLSQP")

    def _multipliers(self, logs: Numbers) -> dict[str, float]:
        """The multipliers that the KKT conditions ask for at an optimum: least squares over what no bound holds."""
        free = (logs > self.lower + 1e-6) & (logs < self.upper - 1e-6)
        gradients = [limit.cost.gradient(logs)[free] / limit.cost.at(logs) for limit in self.limits]
        found = np.linalg.lstsq(np.array(gradients).T, self.weights[free], rcond=None)[0]
        return {limit.name: float(value) for limit, value in zip(self.limits, found, strict=True)}


def _status(problem: Any, solver: str, options: Mapping[str, float]) -> str:
    """What becomes of a problem that a solver is given."""
    import cvxpy

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an inaccurate solution: it is not taken
            problem.solve(solver=solver, **options)
    except cvxpy.SolverError:
        return "failed"
    return str(problem.status)
