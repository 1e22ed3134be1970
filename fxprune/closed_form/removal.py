"""Which units of a group to remove, in which order, and what each removal costs: optimal brain surgeon on groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.closed_form.ridge import damping, invert_positive, solve_positive

STRIDES = 32  # removals after which the costs in a free group are computed anew: one at a time up to this width


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

    Removing the inputs k of a unit from a map costs tr(W_k^T ([H^-1]_kk)^-1 W_k); costs add up over the maps. Free
    groups of more than `STRIDES` units lose several at a time, the cheapest ones: the error after them is exact, and
    what lies between is in proportion to their own costs.

    systems: the maps that read the group; their H is the covariance, ridged by rho.
    width, blocks: units of the group and its blocks, each of which loses one unit a round.
    """
    states = [_State(system, width, rho) for system in systems]
    families = [torch.isin(torch.arange(width), torch.tensor(block)) for block in blocks or [range(width)]]
    stride = 1 if blocks else max(1, width // STRIDES)
    order: list[int] = []
    errors = [0.0]
    while bool(families[0].any()):
        total = errors[-1]
        for family in families:
            costs = sum((state.costs() for state in states), torch.zeros(width, dtype=torch.float64))
            count = min(stride, int(family.sum()))
            units = torch.where(family, costs, torch.inf).argsort(stable=True)[:count]
            own = costs[units].clamp_min(0)
            added = max(0.0, sum(state.remove(units) for state in states))
            family[units] = False
            order += units.tolist()
            between = torch.cumsum(own, 0)[:-1] * (added / float(own.sum().clamp_min(1e-300)))
            errors += (total + between).tolist()
            total += added
        errors.append(total)
    return Removal(tuple(order), tuple(errors), len(families))


def removal_in_order(scores: Tensor, costs: Tensor, blocks: Sequence[Sequence[int]] = ()) -> Removal:
    """Remove units in the order of rising scores, one from each block a round; what each costs adds up.

    scores, costs: of each unit, [width]; costs are at least 0.
    """
    families = [list(block) for block in blocks] or [list(range(len(scores)))]
    ranked = scores.tolist()
    rounds = list(zip(*(sorted(family, key=ranked.__getitem__) for family in families), strict=True))
    errors = torch.cumsum(torch.stack([costs[list(units)].sum() for units in rounds]), 0)
    return Removal(tuple(unit for units in rounds for unit in units), (0.0, *errors.tolist()), len(families))


def uncompensated_costs(systems: Sequence[System], width: int) -> Tensor:
    """What the maps lose when one unit is set to its mean and nothing makes up for it, [width] float64 on the CPU.

    The sum over the maps of tr(W_k^T C_kk W_k), with C the covariance, W the weights, k the inputs of the unit.
    """
    costs = torch.zeros(width, dtype=torch.float64)
    for system in systems:
        for units, index in _tables(system.units.to(system.covariance.device), width):
            part = system.covariance[index[:, :, None], index[:, None, :]].double()
            weights = system.weights[index].double()
            costs[units.cpu()] += (weights * (part @ weights)).sum((1, 2)).cpu()
    return costs.clamp_min(0)


def _tables(units: Tensor, width: int) -> list[tuple[Tensor, Tensor]]:
    """For each number of inputs that a unit may have, the units that have so many, and their inputs, a row each."""
    sizes = torch.bincount(units[units >= 0], minlength=width)
    order = torch.argsort(units, stable=True)
    having = [(size, torch.nonzero(sizes == size)[:, 0]) for size in sizes.unique().tolist() if size]
    return [(have, order[torch.isin(units[order], have)].view(-1, size)) for size, have in having]


class _State:
    """The inverse and the weights of one map as its units leave; its tables are those of the units that stay."""

    def __init__(self, system: System, width: int, rho: float) -> None:
        h = system.covariance.double()
        self.inverse = invert_positive(h + torch.diag(damping(h[None], rho)[0].expand(len(h))))
        self.weights = system.weights.double().clone()
        self.alive = torch.ones(len(h), dtype=torch.bool, device=h.device)
        self.width = width
        self.tables = _tables(system.units.to(h.device), width)

    def costs(self) -> Tensor:
        """The cost of removing each unit next, float64 [width] on the CPU; 0 for one that this map does not read."""
        result = torch.zeros(self.width, dtype=torch.float64, device=self.weights.device)
        for units, index in self.tables:
            part, weights = self.inverse[index[:, :, None], index[:, None, :]], self.weights[index]
            result[units] = (weights * _solve_blocks(part, weights)).sum((1, 2))
        return result.cpu()

    def remove(self, gone: Tensor) -> float:
        """Take the inputs of the units `gone` out and spread what they did over the others; returns what it costs."""
        inputs = []
        for number, (units, index) in enumerate(self.tables):
            here = torch.isin(units, gone.to(units.device))
            inputs.append(index[here].flatten())
            self.tables[number] = (units[~here], index[~here])
        cost = self._take_out(torch.cat(inputs)) if inputs else 0.0
        if 4 * int(self.alive.sum()) < 3 * len(self.alive):
            self._compact()
        return cost

    def _take_out(self, index: Tensor) -> float:
        if not len(index):
            return 0.0
        columns, own = self.inverse[:, index], self.weights[index]
        outputs = self.weights.shape[1]
        spread = _solve_blocks(columns[index], torch.cat([own, columns.mT], dim=1))
        self.weights.addmm_(columns, spread[:, :outputs], alpha=-1)
        self.inverse.addmm_(columns, spread[:, outputs:], alpha=-1)
        self.alive[index] = False
        return float((own * spread[:, :outputs]).sum())

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
