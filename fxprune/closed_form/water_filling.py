"""Water filling: the densities that maximise the sum of their logs under one linear limit."""

from __future__ import annotations

import numpy as np

from fxprune.closed_form.posynomial import Numbers


def water_filling(costs: Numbers, limit: float, most: float = 1.0) -> Numbers:
    """p = min(most, 1 / (multiplier * costs)), with the multiplier at which costs . p = limit: float64 [layers].

    It solves max sum log p, costs . p <= limit, 0 < p <= most (arXiv 2203.02549): the KKT conditions say that every
    layer below `most` spends the same. By bisection on the log of the multiplier.

    costs: above 0, [layers]. Where the limit is no limit, all are at `most`.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if most * costs.sum() <= limit:
        return np.full_like(costs, most)

    def at(log_multiplier: float) -> Numbers:
        return np.asarray(np.minimum(most, np.exp(-log_multiplier) / costs))

    low = -np.log(most * costs.max())  # here all are at `most`, and above the limit
    high = np.log(len(costs) / limit)  # here no layer spends more than its even part of the limit
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if costs @ at(middle) > limit else (low, middle)
    return at(high)
