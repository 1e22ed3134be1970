"""Planned allocation: against brute force, never worse than greedy, at a size that brute force cannot do."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from fxprune.allocate import METHODS
from fxprune.allocate.exchange import STEPS, exchanged
from fxprune.allocate.solve import allotted, smallest
from tests.allocate.problems import least_goal, random_problem

SEEDS = range(60)
DYNAMIC, GREEDY = METHODS["dynamic"], METHODS["greedy"]


def test_nearly_always_the_best_there_is_and_never_worse_than_greedy() -> None:
    missed = 0
    for seed in SEEDS:
        problem = random_problem(seed)
        best, found = least_goal(problem), float(problem.goal(allotted(problem, DYNAMIC)))
        assert best - 1e-9 <= found <= float(problem.goal(allotted(problem, GREEDY))) + 1e-9
        missed += found > best + 1e-9
    assert missed <= 0.05 * len(SEEDS)


def test_the_fewest_flops_under_an_error_are_nearly_always_found() -> None:
    missed = 0
    for seed in SEEDS:
        within = random_problem(seed)
        start = allotted(within, DYNAMIC)
        problem = replace(within, max_error=1.5 * float(within.goal(start)) + 0.1)
        best, found = least_goal(problem), float(problem.goal(smallest(problem, DYNAMIC, start)))
        assert best <= found < np.inf
        missed += found > best
    assert missed <= 0.05 * len(SEEDS)


@pytest.mark.parametrize("limited", ["costs", "error"])
@pytest.mark.parametrize("seed", range(12))
def test_no_exchange_of_two_groups_helps_any_more(seed: int, limited: str) -> None:
    problem = random_problem(seed, 5, 7)
    start = problem.lengths - 1
    if limited == "error":
        problem, start = replace(problem, limits={}, max_error=1.0), np.zeros_like(start)
    rungs = exchanged(problem, start)
    assert problem.goal(rungs) < problem.goal(start)
    for up, down in permutations(range(5), 2):
        for higher, lower in product(range(rungs[up] + 1), range(rungs[down], 7)):
            if {rungs[up] - higher, lower - rungs[down]} <= {0, *STEPS}:
                other = rungs.copy()
                other[up], other[down] = higher, lower
                assert problem.goal(other) >= problem.goal(rungs) * (1 - 1e-9)


@pytest.mark.parametrize("kinds", [("flops",), ("flops", "params")])
@pytest.mark.parametrize("seed", range(3))
def test_many_groups_with_long_ladders(seed: int, kinds: tuple[str, ...]) -> None:
    problem = random_problem(seed, 20, 150, kinds)  # ladders longer than one table takes
    rungs, greedy = allotted(problem, DYNAMIC), allotted(problem, GREEDY)
    assert problem.goal(rungs) < problem.goal(greedy)
    assert np.array_equal(exchanged(problem, rungs), rungs)


def test_a_descent_that_greedy_regrets() -> None:
    """Greedy takes steps that are cheap by themselves and is then left with a dear one; planning sees the whole."""
    problem = random_problem(0, 3, 5, ("flops",))
    errors = {"g0": [0, 3, 3, 3, 3], "g1": [0, 1, 2, 3, 4], "g2": [0, 1, 2, 3, 9]}
    regretted = 0
    for share in np.linspace(0.2, 0.9, 8):
        again = replace(problem, errors=errors, limits={"flops": share * problem.dense["flops"]})
        best = least_goal(again)
        assert again.goal(allotted(again, DYNAMIC)) == best
        regretted += bool(again.goal(allotted(again, GREEDY)) > best)
    assert regretted > 0
