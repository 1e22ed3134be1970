"""Small random problems of allocation, and their best widths by brute force."""

from __future__ import annotations

from itertools import combinations_with_replacement, product

import numpy as np
import sympy

from fxprune.allocate.problem import Problem
from fxprune.cost import Cost


def random_problem(seed: int, groups: int = 0, rungs: int = 0, kinds: tuple[str, ...] = ()) -> Problem:
    """A problem whose curves rise in uneven steps and whose costs are sums of products of two widths.

    groups, rungs: how many; 3 to 5 and 3 to 7 where 0. kinds: the limited costs; any where empty.
    """
    generator = np.random.default_rng(seed)
    names = [f"g{index}" for index in range(groups or generator.integers(3, 6))]
    ladders, errors = {}, {}
    for name in names:
        count, step = rungs or int(generator.integers(3, 8)), int(generator.choice([1, 2, 4, 8]))
        ladders[name] = [step * position for position in range(count, 0, -1)]
        rises = generator.choice([0.0, 0.05, 1.0], count - 1) * generator.random(count - 1) ** 3
        errors[name] = [0.0, *np.cumsum(rises * generator.choice([1, 5, 20])).tolist()]
    symbols = {name: sympy.Symbol(name) for name in names}
    cost = Cost(
        symbols=symbols,
        widths={name: ladder[0] for name, ladder in ladders.items()},
        flops=_products(generator, list(symbols.values())),
        params=_products(generator, list(symbols.values())),
        by_node={},
    )
    dense, least = cost.evaluate(), cost.evaluate({name: ladder[-1] for name, ladder in ladders.items()})
    kinds = kinds or [("flops",), ("params",), ("flops", "params")][seed % 3]
    limits = {kind: least[kind] + generator.uniform(0.1, 0.8) * (dense[kind] - least[kind]) for kind in kinds}
    return Problem(cost, ladders, errors, limits)


def _products(generator: np.random.Generator, symbols: list[sympy.Symbol]) -> sympy.Expr:
    """A chain through all widths, and some other products and squares."""
    chain = sum(int(generator.integers(1, 10)) * a * b for a, b in zip(symbols, [*symbols[1:], 3], strict=True))
    pairs = list(combinations_with_replacement(symbols, 2))
    others = [int(generator.integers(1, 10)) * a * b for a, b in pairs if generator.random() < 2 / len(symbols)]
    return sympy.Add(chain, *others)


def least_goal(problem: Problem) -> float:
    """The best that any widths reach, by trying all of them."""
    rows = np.array(list(product(*map(range, problem.lengths.tolist()))))
    return float(problem.goal(rows).min())
