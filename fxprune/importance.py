"""Importances: in which order the units of a group should leave, and what that costs.

An importance is a function of (group, tensors, systems), registered with `@importance(name)`; it never sees a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.closed_form.removal import Removal, System, greedy_removal
from fxprune.types import ChannelGroup

Importance = Callable[[ChannelGroup, Mapping[str, Tensor], Sequence[System]], Removal]

IMPORTANCES: dict[str, Importance] = {}


def importance(name: str) -> Callable[[Importance], Importance]:
    """Register an importance. It takes a group, the tensors of the network by name, and the maps that read the group
    (empty where no calibration data was seen), and returns the order of removal with an error that is comparable
    between groups: relative to all that the group does, or to the variance of the network's outputs."""

    def register(function: Importance) -> Importance:
        IMPORTANCES[name] = function
        return function

    return register


@importance("magnitude")
def magnitude(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """Norms of all that leaves with a unit, each relative to its mean over the units of its parameter.

    I(k) = sum over parameters of |W[k]| / mean_k |W[k]|, over matrices and kernels, both made and read; over vectors
    only where there is nothing else. The error is the share of the squared scores that is gone.
    """
    return _ordered(group, _scores(group, tensors))


@importance("second_order")
def second_order(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """What the maps that read the group lose when a unit leaves and their other inputs make up for it, greedily.

    The error is that of the network's outputs relative to their variance, to second order. Units that no known map
    reads, such as those of queries and keys, count by their squared magnitude, and a mean one as much as a mean one of
    those that are read. A group that no known map reads goes by magnitude.
    """
    if not systems:
        return magnitude(group, tensors, ())
    read = torch.zeros(group.width, dtype=torch.bool)
    for system in systems:
        read[system.units[system.units >= 0].cpu()] = True
    if not bool(read.all()):
        total = sum(float((item.weights * (item.covariance @ item.weights)).sum()) for item in systems)
        squares = _scores(group, tensors).square()[~read]
        costs = squares / squares.mean().clamp_min(1e-30) * total / int(read.sum())
        units = torch.nonzero(~read)[:, 0]
        systems = [*systems, System(torch.eye(len(units), dtype=torch.float64), costs.sqrt()[:, None], units)]
    return greedy_removal(systems, group.width, group.blocks)


def _scores(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """The group magnitude of every unit: float64 [width]."""
    matrices = {axis.param for axis in group.axes if tensors[axis.param].ndim > 1}
    scores = torch.zeros(group.width, dtype=torch.float64)
    for param, norms in _norms(group, tensors).items():
        if param in matrices or not matrices:
            scores += norms / norms.mean().clamp_min(1e-30)
    return scores


def _norms(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each parameter, the norm of what leaves with each unit: float64 [width]."""
    squares: dict[str, Tensor] = {}
    for param, ids, _ in group.sources:
        value = tensors[param].detach().double().cpu().square()
        value = value.sum_to_size(ids.shape).flatten()
        units = ids.flatten() - group.offset
        inside = (units >= 0) & (units < group.width)
        total = squares.setdefault(param, torch.zeros(group.width, dtype=torch.float64))
        total.index_add_(0, units[inside], value[inside])
    return {param: total.sqrt() for param, total in squares.items()}


def _ordered(group: ChannelGroup, scores: Tensor) -> Removal:
    """Rounds in the order of rising scores, one unit from each block a round."""
    families = [list(block) for block in group.blocks] or [list(range(group.width))]
    columns = [sorted(family, key=lambda unit: float(scores[unit])) for family in families]
    rounds = list(zip(*columns, strict=True))
    squares = torch.tensor([float(scores[list(units)].square().sum()) for units in rounds])
    errors = torch.cumsum(squares, 0) / squares.sum().clamp_min(1e-30)
    return Removal(tuple(unit for units in rounds for unit in units), (0.0, *errors.tolist()), len(families))
