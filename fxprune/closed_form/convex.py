"""The convex programs of pruning at initialisation: layer densities, and widths as a geometric program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fxprune.closed_form.conic import Program, Solution
from fxprune.closed_form.posynomial import Limit, Numbers, Posynomial
from fxprune.errors import BudgetError

__all__ = ["Limit", "Numbers", "Posynomial", "Solution", "check_feasible", "nearest", "solve", "solve_densities"]


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
    if np.isfinite(upper).all() and all(limit.cost.at(upper) <= limit.most for limit in limits):
        return Solution(upper.copy(), dict.fromkeys((limit.name for limit in limits), 0.0), "none: nothing binds")
    return Program(np.asarray(weights), tuple(limits), lower, upper).maximised()


def nearest(
    weights: Numbers, limits: Sequence[Limit], lower: Numbers, upper: Numbers, to: Numbers, least: float
) -> Numbers:
    """The point nearest to `to` at which the objective weights . u is still `least`, within limits and bounds.

    Distances are squared and weighted by `weights`. A program of `solve` may be nearly flat in some directions; this
    says which of its nearly optimal points to take. Where no solver finds it: SolverError.
    """
    return Program(np.asarray(weights), tuple(limits), lower, upper).nearest(to, least)


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
