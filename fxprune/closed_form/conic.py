"""A linear objective, or a distance, under posynomial limits, as a cone program for the solvers behind cvxpy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fxprune.closed_form.posynomial import Limit, Numbers
from fxprune.errors import BudgetError, SolverError

_TIGHT = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-10)


class Attempt(NamedTuple):
    """A solver, how many terms it gets in one sum, and its options."""

    solver: str
    part: int
    options: Mapping[str, float]


# In this order, each where those before it give up. The objective is flat about its optimum: widths to four digits take
# a gap of ten. Long sums are told in parts, for a cone of which the others take nearly everything stalls the solvers.
ATTEMPTS: tuple[Attempt, ...] = (
    Attempt("CLARABEL", 8, _TIGHT),
    Attempt("CLARABEL", 8, {}),
    Attempt("CLARABEL", 16, {}),
    Attempt("CLARABEL", 64, {}),
    Attempt("SCS", 8, {}),
)


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


@dataclass(frozen=True, eq=False)
class Program:
    """weights . u under limits on exp(u), and lower <= u <= upper."""

    weights: Numbers
    limits: Sequence[Limit]
    lower: Numbers
    upper: Numbers

    def maximised(self) -> Solution:
        """The u of the largest weights . u. Raises BudgetError where it has no bound, and SolverError."""
        for attempt in ATTEMPTS:
            found = self._maximised_by(attempt)
            if found is not None:
                return found
        return self._maximised_by_descent()

    def nearest(self, to: Numbers, least: float) -> Numbers:
        """The u nearest to `to`, distances weighted by `weights`, of those with weights . u >= least. SolverError."""
        import cvxpy  # takes seconds, and is needed for these programs alone

        for attempt in ATTEMPTS:
            u, constraints, _ = self._stated(attempt.part)
            distance = cvxpy.sum(cvxpy.multiply(self.weights, cvxpy.square(u - (to - self._centre))))
            reached = self.weights @ u >= least - float(self.weights @ self._centre)
            if _status(cvxpy.Minimize(distance), [*constraints, reached], attempt) == cvxpy.OPTIMAL:
                return self._within(u)
        raise SolverError(f"no solver found the nearly optimal point nearest to the original of {len(to)} variables")

    @cached_property
    def _centre(self) -> Numbers:
        """Where the variable of the solvers is zero: at the bounds, so that its numbers are small."""
        return np.where(np.isfinite(self.upper), self.upper, np.where(np.isfinite(self.lower), self.lower, 0.0))

    def _within(self, u: Any) -> Numbers:
        return np.asarray(np.clip(np.asarray(u.value) + self._centre, self.lower, self.upper))

    def _stated(self, part: int) -> tuple[Any, list[Any], Any]:
        """The variable, all constraints, and of them that which holds the sums of the limits.

        Every limit is a sum of terms that is at most 1. It is told in parts: each term is at most its share of the
        exponential of a variable of its part, and these exponentials add up to at most 1.
        """
        import cvxpy
        from scipy import sparse

        rows, shares, home, tops, of_limit = self._parts(part)
        terms, parts = len(home), len(tops)
        into = sparse.csr_matrix((np.ones(terms), (np.arange(terms), home)), shape=(terms, parts))
        u, log_part, term, whole = (cvxpy.Variable(size) for size in (len(self.weights), parts, terms, parts))
        of = sparse.csr_matrix((np.ones(parts), (of_limit, np.arange(parts))), shape=(len(self.limits), parts))
        sums = of @ whole <= 1
        below, above = np.isfinite(self.lower), np.isfinite(self.upper)
        bounds = [
            u[below] >= (self.lower - self._centre)[below],
            u[above] <= (self.upper - self._centre)[above],
        ]
        constraints = [
            cvxpy.exp(sparse.csr_matrix(rows) @ u - into @ log_part + shares) <= term,
            into.T @ term <= 1,
            cvxpy.exp(log_part + tops) <= whole,
            sums,
            *(bound for bound in bounds if bound.size),
        ]
        return u, constraints, sums

    def _parts(self, part: int) -> tuple[Numbers, Numbers, Any, Numbers, Any]:
        """Exponents of all terms, the log of each one's share of its part at the centre, its part, the log of each
        part's share of its limit, and its limit."""
        rows, shares, home, tops, of_limit = [], [], [], [], []
        first = 0
        for number, limit in enumerate(self.limits):
            count = len(limit.cost.factors)
            parts = max(1, round(count / part))
            own = np.arange(count) * parts // count
            logs = np.log(limit.cost.factors / limit.most) + limit.cost.exponents @ self._centre
            top = np.log(np.bincount(own, np.exp(logs)))
            rows.append(limit.cost.exponents)
            shares.append(logs - top[own])
            home.append(own + first)
            tops.append(top)
            of_limit.append(np.full(parts, number))
            first += parts
        joined = np.concatenate
        return np.vstack(rows), joined(shares), joined(home), joined(tops), joined(of_limit)

    def _maximised_by(self, attempt: Attempt) -> Solution | None:
        """The solution; None where this solver gives up."""
        import cvxpy

        u, constraints, sums = self._stated(attempt.part)
        status = _status(cvxpy.Maximize(self.weights @ u), constraints, attempt)
        if status == cvxpy.UNBOUNDED:
            raise BudgetError("no limit bounds the growth of some group: limit flops= and params= as well")
        if status != cvxpy.OPTIMAL:
            return None
        prices = np.atleast_1d(sums.dual_value).tolist()
        names = (limit.name for limit in self.limits)
        return Solution(self._within(u), dict(zip(names, prices, strict=True)), attempt.solver.capitalize())

    def _maximised_by_descent(self) -> Solution:
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


def _status(objective: Any, constraints: Sequence[Any], attempt: Attempt) -> str:
    """What becomes of a problem that a solver is given."""
    import cvxpy

    problem = cvxpy.Problem(objective, list(constraints))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an inaccurate solution: it is not taken
            problem.solve(solver=attempt.solver, **attempt.options)
    except cvxpy.SolverError:
        return "failed"
    return str(problem.status)
