"""Posynomials: costs as sums of products of powers, and limits on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


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
