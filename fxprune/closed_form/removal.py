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
    families = [list(block) for block in blocks] or [list(range(width))]
    order: list[int] = []
    errors = [0.0]
    for _ in range(len(families[0])):
        total = errors[-1]
        for family in families:
            costs = sum((state.costs(family) for state in states), torch.zeros(len(family), dtype=torch.float64))
            best = int(costs.argmin())
            total += max(0.0, float(costs[best]))
            unit = family.pop(best)
            order.append(unit)
            for state in states:
                state.remove(unit)
        errors.append(total)
    return Removal(tuple(order), tuple(errors), len(families))


class _State:
    """The inverse and the weights of one map as its units leave."""

    def __init__(self, system: System, width: int, rho: float) -> None:
        h = system.covariance.double()
        strength = damping(h[None], rho)[0]
        eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
        self.inverse = solve_positive(h + strength * eye, eye)
        self.weights = system.weights.double().clone()
        self.alive = torch.ones(len(h), dtype=torch.bool, device=h.device)
        units = system.units.to(h.device)
        self.members = [torch.nonzero(units == unit)[:, 0] for unit in range(width)]

    def costs(self, units: Sequence[int]) -> Tensor:
        """The cost of removing each of `units` next, float64 on the CPU; 0 for a unit that this map does not read."""
        result = torch.zeros(len(units), dtype=torch.float64)
        by_size: dict[int, list[int]] = {}
        for position, unit in enumerate(units):
            by_size.setdefault(len(self.members[unit]), []).append(position)
        for size, positions in by_size.items():
            if size:
                index = torch.stack([self.members[units[position]] for position in positions])
                result[positions] = self._batched_costs(index).cpu()
        return result

    def _batched_costs(self, index: Tensor) -> Tensor:
        """tr(W_k^T ([H^-1]_kk)^-1 W_k) for each row of input positions [units, inputs a unit]."""
        part = self.inverse[index[:, :, None], index[:, None, :]]
        weights = self.weights[index]
        return (weights * solve_positive(part, weights)).sum((1, 2))

    def remove(self, unit: int) -> None:
        """Take the inputs of `unit` out and spread what they did over the others."""
        index = self.members[unit]
        if len(index) == 0:
            return
        columns = self.inverse[:, index]
        outputs = self.weights.shape[1]
        spread = solve_positive(columns[index], torch.cat([self.weights[index], columns.mT], dim=1))
        self.weights -= columns @ spread[:, :outputs]
        self.inverse -= columns @ spread[:, outputs:]
        self.alive[index] = False
        self.members[unit] = index[:0]
        if 4 * int(self.alive.sum()) < 3 * len(self.alive):
            self._compact()

    def _compact(self) -> None:
        """Cut out the inputs that have left, now and then: a smaller matrix is cheaper to update."""
        keep, place = self.alive, torch.cumsum(self.alive, 0) - 1
        self.inverse, self.weights = self.inverse[keep][:, keep], self.weights[keep]
        self.members = [place[member] for member in self.members]
        self.alive = keep[keep]
