"""Uniform width: one share for all groups; and units at random."""

from __future__ import annotations

import torch

from fxprune.types import ChannelGroup
from fxprune.widths.scores import by_scores
from fxprune.widths.setting import Choice, Setting, largest, method


@method
def uniform(setting: Setting) -> Choice:
    """The largest one share of all groups that fits: the width multiplier; above 1 where groups may grow.

    Source: Howard et al., MobileNets (2017), section 3.3.
    """

    def at(share: float) -> dict[str, float]:
        return {
            name: min(max(share * width, setting.least[name]), setting.most[name])
            for name, width in setting.dense.items()
        }

    shares = [(setting.least[name] / width, setting.most[name] / width) for name, width in setting.dense.items()]
    low, high = min(low for low, _ in shares), max(high for _, high in shares)
    return Choice(at(largest(setting, at, low, high)))


@method
def random(setting: Setting) -> Choice:
    """Units of all groups in one random order, which `Setting.seed` decides; those of a block family leave in step."""
    generator = torch.Generator().manual_seed(setting.seed)
    return by_scores(setting, {group.name: _drawn(group, generator) for group in setting.coupling.groups})


def _drawn(group: ChannelGroup, generator: torch.Generator) -> torch.Tensor:
    """Scores [width] whose sum over the units that leave together is uniform on [0, 1), however many these are."""
    drawn = torch.rand(group.width // group.step, generator=generator, dtype=torch.float64)
    scores = torch.empty(group.width, dtype=torch.float64)
    scores[torch.tensor(group.blocks or [range(group.width)])] = drawn / group.step
    return scores
