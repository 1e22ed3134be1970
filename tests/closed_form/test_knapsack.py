"""The multiple-choice knapsack: every row of the frontier against brute force, and limits that cannot be kept."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fxprune.closed_form.knapsack import Floats, frontier


def items(seed: int, whole: bool) -> tuple[list[Floats], list[Floats]]:
    """Values and weights of five items; whole weights are at whole levels of the table below."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 6, size=5)
    values = [generator.normal(size=count) for count in counts]
    weights = [generator.integers(-9, 10, size=count).astype(float) for count in counts]
    return values, weights if whole else [weight + generator.random(len(weight)) for weight in weights]


def totals(values: list[Floats], picks: tuple[int, ...]) -> float:
    return float(sum(value[pick] for value, pick in zip(values, picks, strict=True)))


@pytest.mark.parametrize("seed", range(10))
def test_every_row_is_the_best_within_its_weight(seed: int) -> None:
    values, weights = items(seed, whole=True)
    least = sum(float(weight.min()) for weight in weights)
    limit = least + 12
    rows = [tuple(row) for row in frontier(values, weights, limit, levels=13).tolist()]
    every = [(totals(weights, picks), totals(values, picks)) for picks in product(*map(range, map(len, values)))]
    best = {bound: min(value for weight, value in every if weight <= bound) for bound in least + np.arange(13)}
    assert [totals(values, row) for row in rows] == pytest.approx(sorted(set(best.values())))
    for row in rows:
        weight = totals(weights, row)
        assert weight <= limit and totals(values, row) == pytest.approx(best[weight])


@pytest.mark.parametrize("seed", range(10))
def test_rounding_is_at_most_half_a_level_an_item(seed: int) -> None:
    values, weights = items(seed, whole=False)
    limit = sum(float(weight.min()) for weight in weights) + 12
    levels = 500
    slack = 5 / 2 * 12 / (levels - 1)
    found = frontier(values, weights, limit, levels)[0]
    every = list(product(*map(range, map(len, values))))
    strict = min(totals(values, picks) for picks in every if totals(weights, picks) <= limit - slack)
    assert totals(weights, tuple(found)) <= limit + slack
    assert totals(values, tuple(found)) <= strict + 1e-12


def test_nothing_fits() -> None:
    assert frontier([np.zeros(2)] * 3, [np.ones(2)] * 3, 2.9).shape == (0, 3)


def test_only_the_least_fits() -> None:
    values, weights = [np.array([5.0, 1.0])] * 2, [np.array([1.0, 2.0])] * 2
    assert frontier(values, weights, 2.0).tolist() == [[0, 0]]
