"""Least squares toward weights that one already has, from moments alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.closed_form.moments import Moments


def ridge(moments: Moments, prior: Tensor, rho: float, intercept: bool) -> tuple[Tensor, Tensor]:
    """W = (H + aI)^-1 (G + a W0), b = mean y - W^T mean x, with a = rho * mean diag H.

    prior: the weights W0 [systems, inputs, outputs] that the solution is drawn to.
    rho: the strength of the pull, relative to the mean square of an input; larger where rows are few.
    intercept: centre both sides and return b; else b is 0.

    Returns weights [systems, inputs, outputs] and biases [systems, outputs], float64. Singular moments and dead inputs
    keep the prior in the directions that the rows say nothing about.
    """
    xx, xy, _ = moments.second(centred=intercept)
    w0 = prior.double()
    strength = damping(xx, rho)
    residual = xy - xx @ w0
    system = xx + torch.diag_embed(strength.expand(xx.shape[:-1]))
    weights = w0 + solve_positive(system, residual)
    bias = moments.mean_y - (moments.mean_x.unsqueeze(-2) @ weights).squeeze(-2)
    return weights, bias if intercept else torch.zeros_like(bias)


def damping(xx: Tensor, rho: float) -> Tensor:
    """rho * mean diag of each matrix [systems, n, n], as [systems, 1]; 1 where a matrix is zero."""
    mean = xx.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    return torch.where(mean > 0, rho * mean, torch.ones_like(mean))


def solve_positive(system: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric positive systems [.., n, n] for [.., n, m]; what rounding makes singular is lifted, never NaN."""
    factor, info = torch.linalg.cholesky_ex(system)
    if not info.any():
        return torch.cholesky_solve(right, factor)
    values, vectors = torch.linalg.eigh(system)
    floor = values.amax(-1, keepdim=True).clamp_min(1e-30) * 1e-12
    solution: Tensor = vectors @ ((vectors.mT @ right) / values.clamp_min(floor).unsqueeze(-1))
    return solution


def invert_positive(system: Tensor) -> Tensor:
    """The inverse of a symmetric positive matrix [n, n], as `solve_positive` would give it, in a third of the time."""
    factor, info = torch.linalg.cholesky_ex(system)
    if not info.any():
        return torch.cholesky_inverse(factor)
    return solve_positive(system, torch.eye(len(system), dtype=system.dtype, device=system.device))


def squared_error(moments: Moments, weights: Tensor, bias: Tensor) -> Tensor:
    """Mean squared residual of y = W^T x + b over the rows, for each target: float64 [systems, outputs]."""
    xx, xy, yy = moments.second()
    w = weights.double()
    spread = yy - 2 * (w * xy).sum(-2) + (w * (xx @ w)).sum(-2)
    offset = moments.mean_y - (moments.mean_x.unsqueeze(-2) @ w).squeeze(-2) - bias.double()
    return spread.clamp_min(0) + offset.square()


def compensated(covariance: Tensor, weights: Tensor, kept: Tensor, rho: float) -> Tensor:
    """The weights [inputs, outputs] that do best what `weights` do when only the inputs `kept` (bool) are read.

    covariance: of the inputs, [inputs, inputs]. The rows of the other inputs are zero in the result.
    """
    strength = damping(covariance[None], rho)[0]
    system = covariance[kept][:, kept] + strength * torch.eye(int(kept.sum()), dtype=covariance.dtype).to(covariance)
    right = covariance[kept] @ weights + strength * weights[kept]
    result = torch.zeros_like(weights)
    result[kept] = solve_positive(system, right)
    return result
