"""Water filling: what the KKT conditions say, and what the paper's network gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.closed_form.water_filling import water_filling

COSTS = st.lists(st.floats(0.01, 1000), min_size=1, max_size=30).map(np.array)


@given(COSTS, st.floats(0.01, 0.99))
def test_layers_below_the_bound_spend_the_same_and_the_others_less(costs: np.ndarray, share: float) -> None:
    limit = share * costs.sum()
    densities = water_filling(costs, limit)
    spent = costs * densities
    assert spent.sum() == pytest.approx(limit)
    assert spent.sum() <= limit * (1 + 1e-12)
    below = densities < 1 - 1e-9
    level = spent[below]
    assert level == pytest.approx(np.full(len(level), level.mean()))
    assert (spent[~below] <= level.mean() * (1 + 1e-9)).all()


@pytest.mark.parametrize("limit", [6.0, 60.0])
def test_a_limit_that_does_not_bind_leaves_all_at_the_bound(limit: float) -> None:
    assert water_filling(np.array([1.0, 2.0, 3.0]), limit).tolist() == [1, 1, 1]


def test_without_a_bound_every_layer_spends_the_same() -> None:
    costs = np.array([1.0, 10.0, 100.0])
    assert costs * water_filling(costs, 30.0, most=np.inf) == pytest.approx([10, 10, 10])
