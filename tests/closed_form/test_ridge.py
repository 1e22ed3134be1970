"""Ridge: the formula, its limits, and numbers even where the moments are singular."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxprune.closed_form.moments import Moments
from fxprune.closed_form.ridge import compensated, ridge, solve_positive, squared_error


def moments_of(x: Tensor, y: Tensor) -> Moments:
    moments = Moments(x.shape[0], x.shape[2], y.shape[2])
    moments.add(x, y)
    return moments


@pytest.mark.parametrize("intercept", [True, False])
def test_it_is_the_formula(intercept: bool) -> None:
    x, y = torch.randn(2, 60, 4, dtype=torch.float64) + 1, torch.randn(2, 60, 3, dtype=torch.float64)
    prior, rho = torch.randn(2, 4, 3, dtype=torch.float64), 0.05
    weights, bias = ridge(moments_of(x, y), prior, rho, intercept)
    for system in range(2):
        rows, targets = x[system], y[system]
        if intercept:
            rows, targets = rows - rows.mean(0), targets - targets.mean(0)
        h, g = rows.mT @ rows / 60, rows.mT @ targets / 60
        a = rho * h.diagonal().mean()
        expected = torch.linalg.inv(h + a * torch.eye(4)) @ (g + a * prior[system])
        torch.testing.assert_close(weights[system], expected)
        constant = y[system].mean(0) - x[system].mean(0) @ expected if intercept else torch.zeros(3).double()
        torch.testing.assert_close(bias[system], constant)


def test_without_a_pull_it_is_least_squares() -> None:
    x, y = torch.randn(1, 80, 5, dtype=torch.float64), torch.randn(1, 80, 2, dtype=torch.float64)
    weights, bias = ridge(moments_of(x, y), torch.zeros(1, 5, 2), 0.0, True)
    rows = torch.cat([x[0], torch.ones(80, 1)], 1)
    expected = torch.linalg.lstsq(rows, y[0]).solution
    torch.testing.assert_close(torch.cat([weights[0], bias]), expected)


def test_a_strong_pull_gives_the_prior_back() -> None:
    x, prior = torch.randn(1, 80, 5), torch.randn(1, 5, 2).double()
    weights, _ = ridge(moments_of(x, torch.randn(1, 80, 2)), prior, 1e9, True)
    torch.testing.assert_close(weights, prior, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 60])
def test_dead_and_repeated_inputs_give_numbers(rows: int) -> None:
    x = torch.randn(1, rows, 4)
    x = torch.cat([x, x[:, :, :1], torch.zeros(1, rows, 2), torch.ones(1, rows, 1)], 2)
    prior = torch.randn(1, 8, 3)
    for rho in (0.0, 1e-3):
        for intercept in (True, False):
            weights, bias = ridge(moments_of(x, torch.randn(1, rows, 3)), prior, rho, intercept)
            assert torch.isfinite(weights).all() and torch.isfinite(bias).all()
    weights, _ = ridge(moments_of(x, torch.randn(1, rows, 3)), prior, 1e-3, True)
    torch.testing.assert_close(weights[:, 5:7], prior[:, 5:7].double(), rtol=1e-5, atol=1e-5)


def test_squared_error_is_that_of_the_rows() -> None:
    x, y = torch.randn(2, 50, 3, dtype=torch.float64) + 2, torch.randn(2, 50, 2, dtype=torch.float64)
    weights, bias = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    expected = (y - x @ weights - bias[:, None]).square().mean(1)
    torch.testing.assert_close(squared_error(moments_of(x, y), weights, bias), expected)


def test_solving_an_indefinite_system_gives_numbers() -> None:
    system = torch.diag(torch.tensor([1.0, 0.0, -1e-9])).double()
    assert torch.isfinite(solve_positive(system[None], torch.ones(1, 3, 1).double())).all()


def test_what_is_kept_makes_up_for_what_is_gone() -> None:
    x = torch.randn(500, 4, dtype=torch.float64)
    x[:, 3] = x[:, 0] + x[:, 1]
    covariance = x.mT @ x / 500
    weights = torch.randn(4, 2, dtype=torch.float64)
    found = compensated(covariance, weights, torch.tensor([True, True, True, False]), 1e-9)
    torch.testing.assert_close(x @ found, x @ weights, rtol=1e-5, atol=1e-5)
    assert not found[3].any()
