"""From scores of units to widths: one threshold over the units of all groups.

The score of a unit is the sum over its weights, and the units of all groups are compared by it as it is, neither for
each weight nor for what a unit costs: the one threshold that the papers set on the scores of all single weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.types import ChannelGroup, Coupling
from fxprune.widths.setting import Choice, Setting, largest


class Step(NamedTuple):
    """Units of a group that leave together: one, or one from each block.

    size: how much narrower the group becomes; less than there are units where it comes to its least width.
    score: the sum over the units.
    """

    group: str
    units: tuple[int, ...]
    size: float
    score: float


def by_scores(setting: Setting, scores: Mapping[str, Tensor]) -> Choice:
    """The widths that fit once the units of least score have left, of whichever group.

    scores: of each unit, float64 [width], by the name of the group. PlanError where one is NaN or infinite.
    """
    steps = ranked(setting, scores)
    return choice_after(setting, steps, fewest(setting, steps))


def ranked(setting: Setting, scores: Mapping[str, Tensor], gone: Sequence[Step] = ()) -> list[Step]:
    """All steps in the order in which they leave: by rising score, and last those that are never needed because their
    group has come to its least width.

    gone: what has left already and comes first, whatever its score is now.
    """
    left: dict[str, set[int]] = {group.name: set() for group in setting.coupling.groups}
    for step in gone:
        left[step.group].update(step.units)
    steps: list[Step] = []
    for group in setting.coupling.groups:
        known = scores[group.name]
        if not bool(torch.isfinite(known).all()):
            raise PlanError(f"the scores of {group.name} hold NaN or infinity: look at the weights, and at data=")
        room = group.width - len(left[group.name]) - setting.least[group.name]
        for units, score in _together(group, known.tolist(), left[group.name]):
            steps.append(Step(group.name, units, min(max(room, 0.0), float(group.step)), score))
            room -= group.step
    return [*gone, *sorted(steps, key=lambda step: (step.size == 0, step.score))]


def _together(group: ChannelGroup, scores: Sequence[float], left: set[int]) -> list[tuple[tuple[int, ...], float]]:
    """What leaves together of the units that are there, in order, with its score: the i-th worst of each block."""
    blocks = group.blocks or (tuple(range(group.width)),)
    ordered = [sorted((unit for unit in block if unit not in left), key=scores.__getitem__) for block in blocks]
    return [(units, math.fsum(scores[unit] for unit in units)) for units in zip(*ordered, strict=True)]


def fewest(setting: Setting, steps: Sequence[Step]) -> float:
    """How many of the steps must be taken, in their order, until the limits hold; the last one in part."""
    widths = _widths_after(setting, steps)
    return len(steps) - largest(setting, lambda kept: widths(len(steps) - kept), 0, len(steps))


def choice_after(setting: Setting, steps: Sequence[Step], number: float) -> Choice:
    """The widths once so many steps are taken, and the order of all units."""
    order: dict[str, list[int]] = {group.name: [] for group in setting.coupling.groups}
    for step in steps:
        order[step.group] += step.units
    return Choice(_widths_after(setting, steps)(number), {name: tuple(units) for name, units in order.items()})


def _widths_after(setting: Setting, steps: Sequence[Step]) -> Callable[[float], dict[str, float]]:
    """The widths as a function of how many steps are taken, which need not be whole."""
    names = list(setting.dense)
    homes = np.array([names.index(step.group) for step in steps], dtype=np.int64)
    sizes, places = np.array([step.size for step in steps]), np.arange(len(steps))
    dense, most = (np.array([bound[name] for name in names]) for bound in (setting.dense, setting.most))

    def widths(number: float) -> dict[str, float]:
        lost = np.bincount(homes, sizes * np.clip(number - places, 0, 1), minlength=len(names))
        return dict(zip(names, np.minimum(dense - lost, most).tolist(), strict=True))

    return widths


def unit_scores(coupling: Coupling, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of what weights count for over all that leaves with each unit: float64 [width], by the name of the group.

    saliency: of each element of each parameter. Matrices and kernels count, both those that make a unit and those that
        read it; vectors, such as biases and the affines of norms, only where a group has nothing else. An element that
        leaves with two units counts for both.
    """
    return {group.name: _summed(group, saliency) for group in coupling.groups}


def _summed(group: ChannelGroup, saliency: Mapping[str, Tensor]) -> Tensor:
    params = list(dict.fromkeys(source.param for source in group.sources if source.param in saliency))
    matrices = [param for param in params if saliency[param].ndim > 1]
    scores = torch.zeros(group.width, dtype=torch.float64)
    for param in matrices or params:
        fields = [source.ids for source in group.sources if source.param == param]
        for place, ids in enumerate(fields):
            value = saliency[param].detach().double().cpu()
            for earlier in fields[:place]:  # an element in the row and the column of one unit counts once
                value = value.masked_fill(ids == earlier, 0.0)
            units = ids.flatten() - group.offset
            inside = (units >= 0) & (units < group.width)
            scores.index_add_(0, units[inside], value.sum_to_size(ids.shape).flatten()[inside])
    return scores
