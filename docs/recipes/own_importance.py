"""An importance of your own: one function of a group, its tensors and what the images say of its readers."""

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor

import fxprune as fp
from fxprune.closed_form.removal import Removal, System, removal_in_order
from fxprune.importance import importance


@importance("largest_entry")
def largest_entry(group: fp.ChannelGroup, tensors: Mapping[str, Tensor], systems: Sequence[System]) -> Removal:
    """Units whose weights are all small leave first."""
    scores = torch.zeros(group.width, dtype=torch.float64)
    for unit in range(group.width):
        for part in group.slices(unit):
            value = tensors[part.param].detach().double()
            for dim, positions in enumerate(part.index):
                value = value if positions is None else value.index_select(dim, torch.tensor(positions))
            scores[unit] = max(scores[unit], value.abs().max())
    return removal_in_order(scores, scores.square() / scores.square().sum(), group.blocks)


images = torch.randn(64, 3, 32, 32)
model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35)
result = fp.prune(
    model, images[:2], budget=fp.Budget(flops=0.5), calibration=images, recipe="fast", importance="largest_entry"
)
print(result.report)
