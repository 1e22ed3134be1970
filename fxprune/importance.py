"""Importances: in which order the units of a group should leave, and what that costs.

An importance is a function of (group, tensors, systems), registered with `@importance(name)`; it never sees a layer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fxprune.closed_form.removal import Removal, System, greedy_removal, removal_in_order, uncompensated_costs
from fxprune.errors import registered
from fxprune.types import ChannelGroup

Importance = Callable[[ChannelGroup, Mapping[str, Tensor], Sequence[System]], Removal]

IMPORTANCES: dict[str, Importance] = {}
_WITH_IMAGES: set[str] = set()


def importance(name: str, *, needs_images: bool = False) -> Callable[[Importance], Importance]:
    """Register an importance. It takes a group, the tensors of the network by name, and the maps that read the group
    (empty where no calibration data was seen), and returns the order of removal with an error that is comparable
    between groups: relative to all that the group does, or to the variance of the network's outputs.

    needs_images: whether it says little without the maps, so that calibration images should be asked for.
    """

    def register(function: Importance) -> Importance:
        IMPORTANCES[name] = function
        (_WITH_IMAGES.add if needs_images else _WITH_IMAGES.discard)(name)
        return function

    return register


def needs_images(name: str) -> bool:
    """Whether the importance of this name needs calibration images."""
    return name in _WITH_IMAGES


def importance_called(name: str) -> Importance:
    """The importance of this name. PlanError where there is none."""
    return registered("importance", name, IMPORTANCES)


@importance("magnitude")
def magnitude(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """Norms of all that leaves with a unit, each relative to its mean over the units of its parameter. No images.

    I(k) = sum over parameters of |W[k]| / mean_k |W[k]|, over matrices and kernels, both made and read; over vectors
    only where there is nothing else. The error is the share of the squared scores that is gone. Source: the norms of
    Li et al., Pruning Filters for Efficient ConvNets (2017), over groups as in Fang et al., DepGraph (2023).
    """
    return _by_share(_scores(group, tensors), group)


@importance("second_order", needs_images=True)
def second_order(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """What the maps that read the group lose when a unit leaves and their other inputs make up for it, greedily.

    The error is that of the network's outputs relative to their variance, to second order. Units that no known map
    reads, such as those of queries and keys, count by their squared magnitude, and a mean one as much as a mean one of
    those that are read. A group that no known map reads goes by magnitude. Source: Hassibi and Stork, Optimal Brain
    Surgeon (1993), on groups of inputs.
    """
    if not systems:
        return magnitude(group, tensors, ())
    return greedy_removal(_with_unread(group, tensors, systems), group.width, group.blocks)


@importance("taylor", needs_images=True)
def taylor(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """What the maps that read the group lose when a unit is held at its mean and nothing makes up for it.

    I(k) = sum over the maps of tr(W_k^T C_kk W_k), with C the covariance of the inputs. The weights carry how much the
    outputs feel an error there, so this is the squared first-order Taylor term of the outputs themselves
    (Gauss-Newton), and no labels are needed. The error is relative to the variance of the outputs, and units are taken
    for independent. Units and groups that no known map reads are treated as in `second_order`. Source: Molchanov et
    al., Importance Estimation for Neural Network Pruning (2019), equation 8, with outputs in place of a loss.
    """
    if not systems:
        return magnitude(group, tensors, ())
    costs = uncompensated_costs(_with_unread(group, tensors, systems), group.width)
    return removal_in_order(costs, costs, group.blocks)


@importance("fpgm")
def fpgm(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """How far the filters of a unit are from those of the others, each relative to its mean over the units. No images.

    I(k) = sum over the producing matrices and kernels of d(k) / mean_k d(k), with d(k) = sum_j |W[k] - W[j]|: least at
    the geometric median, which the others can stand in for. The error is the share of the squared scores that is gone.
    A group that only vectors make goes by magnitude. Source: He et al., Filter Pruning via Geometric Median (2019),
    equation 4.
    """
    scores = torch.zeros(group.width, dtype=torch.float64)
    made = False
    for param, ids, role in group.sources:
        if role == "produces" and tensors[param].ndim > 1:
            units, filters = _filters(group, tensors[param], ids)
            distances = torch.zeros_like(scores)
            distances[units] = torch.cdist(filters, filters).sum(1)
            scores += distances / distances.mean().clamp_min(1e-30)
            made = True
    return _by_share(scores, group) if made else magnitude(group, tensors, ())


@importance("random")
def random(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """Any order, the same on every run: the generator is seeded with the group's name. No images.

    The error is the share of the units that is gone. A baseline: an importance must do better.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    equal = torch.full((group.width,), 1 / group.width, dtype=torch.float64)
    return removal_in_order(torch.rand(group.width, generator=generator), equal, group.blocks)


def _by_share(scores: Tensor, group: ChannelGroup) -> Removal:
    """In the order of rising scores; the error is the share of the squared scores that is gone."""
    squares = scores.square()
    return removal_in_order(scores, squares / squares.sum().clamp_min(1e-30), group.blocks)


def _with_unread(group: ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> list[System]:
    """The maps, and one more for units that none of them reads: independent inputs, each as costly as its squared
    magnitude says, on average as costly as those that are read."""
    read = torch.zeros(group.width, dtype=torch.bool)
    for system in systems:
        read[system.units[system.units >= 0].cpu()] = True
    if bool(read.all()):
        return list(systems)
    total = sum(float((item.weights * (item.covariance @ item.weights)).sum()) for item in systems)
    squares = _scores(group, tensors).square()[~read]
    costs = squares / squares.mean().clamp_min(1e-30) * total / int(read.sum())
    units = torch.nonzero(~read)[:, 0]
    return [*systems, System(torch.eye(len(units), dtype=torch.float64), costs.sqrt()[:, None], units)]


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


def _filters(group: ChannelGroup, tensor: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The units that lie in a tensor, and all that belongs to each: [units], float64 [units, elements].

    Where units have unequally many elements, the short ones are filled up with zeros.
    """
    along = [dim for dim in range(tensor.ndim) if ids.shape[dim] > 1]
    across = [dim for dim in range(tensor.ndim) if ids.shape[dim] == 1]
    places = ids.flatten() - group.offset
    rows = tensor.detach().double().cpu().permute(*along, *across).reshape(len(places), -1)
    inside = torch.nonzero((places >= 0) & (places < group.width))[:, 0]
    inside = inside[torch.argsort(places[inside], stable=True)]
    units, counts = torch.unique_consecutive(places[inside], return_counts=True)
    number = torch.repeat_interleave(torch.arange(len(units)), counts)
    rank = torch.arange(len(inside)) - (torch.cumsum(counts, 0) - counts)[number]
    filters = rows.new_zeros(len(units), int(counts.max()), rows.shape[1])
    filters[number, rank] = rows[inside]
    return units, filters.flatten(1)
