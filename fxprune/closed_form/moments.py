"""Streaming second moments of rows and of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 144  # columns that are multiplied at once


class Moments:
    """Second moments of rows x and targets y for several independent systems, in memory that does not grow with rows.

    systems: how many independent systems there are (1 but for grouped convolutions).
    inputs, outputs: unknowns and targets of each system.

    Rows are shifted by the mean of the first batch before they are multiplied, so that a float32 product loses nothing
    to a large mean; sums are kept in float64.
    """

    def __init__(self, systems: int, inputs: int, outputs: int = 0, device: torch.device | str = "cpu") -> None:
        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(systems, *sizes, dtype=torch.float64, device=device)

        self.count = 0
        self._sum_x, self._sum_y = zeros(inputs), zeros(outputs)
        self._xx, self._xy, self._yy = zeros(inputs, inputs), zeros(inputs, outputs), zeros(outputs)
        self._shift_x: Tensor | None = None
        self._shift_y: Tensor | None = None
        self._second: dict[bool, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, rows: Tensor, targets: Tensor | None = None) -> None:
        """Take in rows [systems, rows, inputs] and their targets [systems, rows, outputs]."""
        if rows.shape[1] == 0:
            return
        self._second.clear()
        rows = widened(rows)  # products of half precision overflow
        y = rows.new_zeros(*rows.shape[:2], 0) if targets is None else widened(targets)
        if self._shift_x is None or self._shift_y is None:
            self._shift_x, self._shift_y = rows.mean(1, keepdim=True), y.mean(1, keepdim=True)
        x, y = rows - self._shift_x, y - self._shift_y
        self.count += rows.shape[1]
        self._sum_x += x.sum(1)
        self._sum_y += y.sum(1)
        for start in range(0, x.shape[2], BLOCK):  # the upper half is enough, block by block
            stop = start + BLOCK
            self._xx[:, start:stop, start:] += x[:, :, start:stop].mT @ x[:, :, start:]
        self._xy += x.mT @ y
        self._yy += y.square().sum(1)

    @property
    def mean_x(self) -> Tensor:
        """Mean row, float64 [systems, inputs]."""
        return self._sum_x / max(1, self.count) + (0 if self._shift_x is None else self._shift_x[:, 0].double())

    @property
    def mean_y(self) -> Tensor:
        """Mean target, float64 [systems, outputs]."""
        return self._sum_y / max(1, self.count) + (0 if self._shift_y is None else self._shift_y[:, 0].double())

    def second(self, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Mean of x x^T [systems, inputs, inputs], of x y^T [.., inputs, outputs] and of y^2 [.., outputs], float64.

        centred: about the means, else about zero.
        """
        if centred not in self._second:
            self._second[centred] = self._means_of_products(centred)
        return self._second[centred]

    def _means_of_products(self, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        n = max(1, self.count)
        dx, dy = self._sum_x / n, self._sum_y / n
        xx = (self._xx.triu() + self._xx.triu(1).mT) / n - _outer(dx, dx)
        xy = self._xy / n - _outer(dx, dy)
        yy = (self._yy / n - dy.square()).clamp_min(0)
        if not centred:
            mean_x, mean_y = self.mean_x, self.mean_y
            xx, xy, yy = xx + _outer(mean_x, mean_x), xy + _outer(mean_x, mean_y), yy + mean_y.square()
        return xx, xy, yy


def widened(tensor: Tensor) -> Tensor:
    """A floating-point tensor with at least the precision of float32, in which sums, errors and small steps survive."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2)
