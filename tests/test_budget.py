"""Budgets: shares and absolute numbers, errors, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import fxprune as fp
from fxprune.errors import BudgetError


@pytest.mark.parametrize("limit", [0, -0.5, float("nan"), float("inf"), "half", True])
def test_budgets_out_of_range(limit: float) -> None:
    with pytest.raises(BudgetError, match="a limit is a share in"):
        fp.Budget(flops=limit)


@pytest.mark.parametrize("error", [0, -0.5, float("nan"), float("inf"), "little", True])
def test_errors_out_of_range(error: float) -> None:
    with pytest.raises(BudgetError, match=r"max_error=.*: an error is a number above 0, relative to the variance"):
        fp.Budget(flops=0.5, max_error=error)


@pytest.mark.parametrize("error", [1e-9, 0.05, 3, np.float32(0.5)])
def test_an_error_is_a_budget_by_itself_and_no_limit_of_a_cost(error: float) -> None:
    budget = fp.Budget(max_error=error)
    assert (budget.max_error, budget.limits, budget.absolute({"flops": 1000})) == (error, {}, {})
    assert fp.Budget(flops=0.5, max_error=error).limits == {"flops": 0.5}


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(
        BudgetError, match="an empty budget: give at least one of flops=, params=, memory=, latency= and max_error="
    ):
        fp.Budget()


def test_shares_and_absolute_numbers() -> None:
    budget = fp.Budget(flops=0.5, params=300)
    assert budget.absolute({"flops": 1000, "params": 1000}) == {"flops": 500, "params": 300}


def test_it_prints_as_it_would_be_written() -> None:
    assert repr(fp.Budget(flops=0.5, max_error=0.05)) == "Budget(flops=0.5, max_error=0.05)"
