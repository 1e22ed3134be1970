"""Which units of a group to remove, in which order, and what each removal costs: optimal brain surgeon on groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.closed_form.ridge import damping, solve_positive


@dataclass(frozen=True)
class System:
    """One linear map that reads the units of a group.

    covariance: of its inputs, [inputs, inputs].
    weights: [inputs, outputs], scaled so that squared errors of different maps add up.
    units: the unit that each input belongs to, [inputs]; -1 for an input that stays whatever happens.
    """

    covariance: Tensor
    weights: Tensor
    units: Tensor


@dataclass(frozen=True)
class Removal:
    """The order in which units leave a group, in rounds of one unit from each block, and the error after each round.

    order: units in the order of removal; the units of one round are neighbours. Covers every round.
    errors: total error after 0, 1, 2... rounds; never falls.
    step: units a round.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]
    step: int = 1


def greedy_removal(
    systems: Sequence[System], width: int, blocks: Sequence[Sequence[int]] = (), rho: float = 1e-2
) -> Removal:
    """Remove, again and again, the unit of least cost, and let the inputs that stay make up for it.

    Removing the inputs k of a unit from a map costs tr(W_k^T ([H^-1]_kk)^-1 W_k); costs add up over the maps.

    systems: the maps that read the group; their H is the covariance, ridged by rho.
    width, blocks: units of the group and its blocks, each of which loses one unit a round.
    """
    states = [_State(system, width, rho) for system in systems]
    families = [torch.isin(torch.arange(width), torch.tensor(block)) for block in blocks or [range(width)]]
    order: list[int] = []
    errors = [0.0]
    for _ in range(int(families[0].sum())):
        total = errors[-1]
        for family in families:
            costs = sum((state.costs() for state in states), torch.zeros(width, dtype=torch.float64))
            unit = int(torch.where(family, costs, torch.inf).argmin())
            total += max(0.0, float(costs[unit]))
            order.append(unit)
            family[unit] = False
            for state in states:
                state.remove(unit)
        errors.append(total)
    return Removal(tuple(order), tuple(errors), len(families))


class _State:
    """The inverse and the weights of one map as its units leave.

    tables: for each number of inputs that a unit may have, the units that have so many, and their inputs, a row each.
    """

    def __init__(self, system: System, width: int, rho: float) -> None:
        h = system.covariance.double()
        eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
        self.inverse = solve_positive(h + damping(h[None], rho)[0] * eye, eye)
        self.weights = system.weights.double().clone()
        self.alive = torch.ones(len(h), dtype=torch.bool, device=h.device)
        self.width = width
        units = system.units.to(h.device)
        sizes = torch.bincount(units[units >= 0], minlength=width)
        order = torch.argsort(units, stable=True)
        self.tables: list[tuple[Tensor, Tensor]] = []
        for size in sizes.unique().tolist():
            if size:
                have = torch.nonzero(sizes == size)[:, 0]
                self.tables.append((have, order[torch.isin(units[order], have)].view(-1, size)))

    def costs(self) -> Tensor:
        """The cost of removing each unit next, float64 [width] on the CPU; 0 for one that this map does not read."""
        result = torch.zeros(self.width, dtype=torch.float64)
        for units, index in self.tables:
            part, weights = self.inverse[index[:, :, None], index[:, None, :]], self.weights[index]
            result[units.cpu()] = (weights * _solve_blocks(part, weights)).sum((1, 2)).cpu()
        return result

    def remove(self, unit: int) -> None:
        """Take the inputs of `unit` out and spread what they did over the others."""
        for number, (units, index) in enumerate(self.tables):
            here = units == unit
            if bool(here.any()):
                self._take_out(index[here][0])
                self.tables[number] = (units[~here], index[~here])
                if 4 * int(self.alive.sum()) < 3 * len(self.alive):
                    self._compact()
                return

    def _take_out(self, index: Tensor) -> None:
        columns = self.inverse[:, index]
        outputs = self.weights.shape[1]
        spread = _solve_blocks(columns[index], torch.cat([self.weights[index], columns.mT], dim=1))
        self.weights.addmm_(columns, spread[:, :outputs], alpha=-1)
        self.inverse.addmm_(columns, spread[:, outputs:], alpha=-1)
        self.alive[index] = False

    def _compact(self) -> None:
        """Cut out the inputs that have left, now and then: a smaller matrix is cheaper to update."""
        keep, place = self.alive, torch.cumsum(self.alive, 0) - 1
        self.inverse, self.weights = self.inverse[keep][:, keep], self.weights[keep]
        self.tables = [(units, place[index]) for units, index in self.tables]
        self.alive = keep[keep]


def _solve_blocks(blocks: Tensor, right: Tensor) -> Tensor:
    """As `solve_positive`, faster for blocks of one number."""
    if blocks.shape[-1] > 1:
        return solve_positive(blocks, right)
    return right / blocks.clamp_min(1e-300)
