"""SynFlow: the weights through which least flows leave first, a few at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from fxprune.errors import PlanError
from fxprune.types import Coupling
from fxprune.widths.linearised import linearised
from fxprune.widths.scores import Step, choice_after, fewest, ranked, unit_scores
from fxprune.widths.setting import Choice, Setting, method

ROUNDS = 100


@method
@torch.enable_grad()
def synflow(setting: Setting) -> Choice:
    """Structured SynFlow, without data: the score of a unit is the sum of |theta * dR/dtheta| over its weights.

    R is the sum of the outputs of the linearised network with absolute weights for an input of ones. The units leave in
    100 rounds with new scores in each, while the limits tighten exponentially from the costs of the original to those
    that are set. Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic
    flow (2020), algorithm 1, with units for weights. Raises PlanError where nothing flows.
    """
    weights = {name: weight.detach().abs().double() for name, weight in setting.gm.named_parameters()}
    gone: list[Step] = []
    for done in range(1, ROUNDS + 1):
        now = replace(setting, limits=_limits(setting, done / ROUNDS))
        steps = ranked(now, unit_scores(setting.coupling, flows(setting.gm, weights)), gone)
        number = fewest(now, steps)
        gone = steps[: max(len(gone), math.ceil(number - 1e-9))]  # whole ones
        weights = without(weights, setting.coupling, gone)
    return choice_after(setting, steps, number)


def _limits(setting: Setting, share: float) -> dict[str, float]:
    """The limits after a share of the rounds, between what the original costs and what is set."""
    dense = setting.spent(setting.dense)
    return {kind: dense[kind] ** (1 - share) * limit**share for kind, limit in setting.limits.items()}


def flows(gm: fx.GraphModule, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The synaptic flow weight * dR/dweight of each element as a share of R, float64.

    weights: at least 0, by the names of `gm.named_parameters()`. Raises PlanError where nothing flows.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    total = linearised(gm, leaves)  # the log of R
    if not bool(torch.isfinite(total)):
        raise PlanError("method='synflow': nothing flows through this network: a layer holds only zeros, or NaN")
    slopes = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {name: weights[name] * slope for name, slope in zip(leaves, slopes, strict=True)}


def without(weights: Mapping[str, Tensor], coupling: Coupling, gone: Sequence[Step]) -> dict[str, Tensor]:
    """The weights with zeros wherever a unit has left."""
    stays = torch.ones(1 + sum(group.width for group in coupling.groups), dtype=torch.bool)
    for step in gone:
        stays[[coupling.by_name[step.group].offset + unit for unit in step.units]] = False
    left = dict(weights)
    for group in coupling.groups:
        for param, ids, _ in group.sources:
            if param in left:
                left[param] = left[param] * stays[ids].to(left[param].device)
    return left
