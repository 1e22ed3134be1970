"""Muon for many small matrices: the steps of all of them are orthogonalised together.

`torch.optim.Muon` takes one matrix after another, in bfloat16, which for the hundred kernels of a small network takes
a sixth of a training step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # of Newton and Schulz
SIMILAR = 4  # padding adds at most one part in so many to either side of a matrix

Group = dict[str, Any]


class Muon(Optimizer):
    """Each matrix moves along its orthogonalised Nesterov momentum, by the root mean square 0.2 times `lr`.

    groups: of matrices, each with its rate. Matrices of similar sizes are padded by zeros to the same and stacked:
    products of a padded matrix are the padded products. Source: Jordan et al., "Muon: an optimizer for hidden layers in
    neural networks" (2024); the size of a step is that of Liu et al., "Muon is scalable for LLM training" (2025).
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        super().__init__(groups, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # there is no loss to evaluate again
        """Move every matrix that has a gradient."""
        for (short, long, *_), moving in self._stacks().items():
            stack = moving[0][0].new_zeros(len(moving), short, long)
            for place, (matrix, _) in zip(stack, moving, strict=True):
                _within(place, matrix).copy_(self._momentum(matrix))
            for place, (matrix, rate) in zip(orthogonalised(stack), moving, strict=True):
                matrix.sub_(_within(place, matrix), alpha=0.2 * math.sqrt(max(matrix.shape)) * rate)

    def _stacks(self) -> dict[tuple[Any, ...], list[tuple[Tensor, float]]]:
        """The matrices that move, each with its rate, by the padded size."""
        found: dict[tuple[Any, ...], list[tuple[Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    short, long = map(_padded, sorted(matrix.shape))
                    found[short, long, matrix.dtype, matrix.device].append((matrix, group["lr"]))
        return found

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Where the next gradient is expected to point."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(momentum, MOMENTUM)


def orthogonalised(stack: Tensor) -> Tensor:
    """Matrices [matrices, rows, columns], at least as wide as high, with all singular values near 1."""
    factor, cubic, quintic = COEFFICIENTS
    found: Tensor = stack / torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), found, beta=factor)
    return found


def _padded(length: int) -> int:
    """The length, rounded up so that few different ones are left."""
    unit = max(1, (1 << length.bit_length() - 1) // SIMILAR)
    return -(-length // unit) * unit


def _within(place: Tensor, matrix: Tensor) -> Tensor:
    """The part of a padded place that belongs to a matrix, in its shape."""
    rows, columns = matrix.shape
    return place[:rows, :columns] if rows <= columns else place[:columns, :rows].mT
