"""Model folding: similar channels are merged, rather than some of them removed.

Channels of a group are clustered by the weights that make them (k-means); a cluster becomes one channel, made by the
mean of its filters, whose readers take the sum of their columns (Wang et al., "Forget the Data and Fine-Tuning! Just
Fold the Network to Compress", 2025). Every group keeps the same share of its channels. BatchNorm is re-estimated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

import fxprune as fp
from benchmarks.accuracy_batch_norm import reestimated
from benchmarks.accuracy_rows import Made, Task
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import Shrink
from fxprune.passes.tidy import Tidy
from fxprune.types import ChannelGroup, Slice

STEPS = 1024  # shares of the channels to choose from
Clusters = list[list[int]]  # units that become one; the first stands for all


def folded(task: Task) -> Made:
    """The row of the table. Raises ValueError where no ratio reaches the share."""
    device = next(task.model.parameters()).device
    gm = clone(fp.capture(copy.deepcopy(task.model).cpu(), (task.images[:2],)))
    coupling = fp.analyze(gm)
    widths = _widths(gm, coupling, task.share)
    tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    clusters = {group.name: cluster(group, tensors, widths[group.name], task.seed) for group in coupling.groups}
    for group in coupling.groups:
        for members in clusters[group.name]:
            merge([group.slices(unit) for unit in members], tensors)
    plan = fp.Plan({name: [members[0] for members in found] for name, found in clusters.items()})
    for step in (PinSizes(), Shrink(plan), Tidy(), Lift()):
        step(gm)
    return reestimated(gm.to(device), task.images), {}


def _widths(gm: fx.GraphModule, coupling: fp.Coupling, share: float) -> Mapping[str, int]:
    """The largest equal share of each group with which the network fits, and a channel more where it still does."""
    cost = fp.cost(gm, coupling)
    limit = share * cost.evaluate()["flops"]
    for kept in range(STEPS, 0, -1):
        widths = {
            group.name: group.step * max(1, group.width * kept // (STEPS * group.step)) for group in coupling.groups
        }
        if cost.evaluate(widths)["flops"] <= limit:
            for group in coupling.groups:
                wider = widths | {group.name: min(group.width, widths[group.name] + group.step)}
                widths = wider if cost.evaluate(wider)["flops"] <= limit else widths
            return widths
    raise ValueError(f"folding does not reach {share:.0%} of the FLOPs")


def cluster(group: ChannelGroup, tensors: Mapping[str, Tensor], width: int, seed: int) -> Clusters:
    """Disjoint sets of units, `width` of them, each within a block of the group."""
    points = _points(group, tensors)
    families = group.blocks or (tuple(range(group.width)),)
    found: Clusters = []
    for family in families:
        labels = k_means(points[list(family)], width // len(families), seed)
        for label in labels.unique().tolist():
            found.append([unit for unit, mine in zip(family, labels.tolist(), strict=True) if mine == label])
    return found


def _points(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """For each unit the filters that make it, each parameter relative to its mean norm: float64 [width, numbers]."""
    made = [source for source in group.sources if source.role == "produces"]
    matrices = {source.param for source in made if tensors[source.param].ndim > 1}
    chosen = matrices or {source.param for source in made} or {source.param for source in group.sources}
    rows = [
        [_part(tensors[part.param], part).flatten() for part in group.slices(unit) if part.param in chosen]
        for unit in range(group.width)
    ]
    columns = [torch.stack(column).double() for column in zip(*rows, strict=True)]
    return torch.cat([column / column.norm(dim=1).mean().clamp_min(1e-30) for column in columns], 1)


def k_means(points: Tensor, count: int, seed: int, rounds: int = 50) -> Tensor:
    """The cluster of each point: int64 [points], with `count` different values.

    Begins with points far from one another (k-means++); a cluster that loses all its points takes the worst served.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    centres = points[chosen]
    labels = torch.full((len(points),), -1)
    for _ in range(rounds):
        distance = torch.cdist(points, centres)
        nearest = distance.argmin(1)
        for empty in sorted(set(range(count)) - set(nearest.tolist())):
            crowded = nearest.bincount(minlength=count)[nearest] > 1
            nearest[torch.where(crowded, distance.amin(1), -1.0).argmax()] = empty
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = torch.stack([points[labels == label].mean(0) for label in range(count)])
    return labels


@torch.no_grad()
def merge(units: Sequence[tuple[Slice, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Let the first of these units stand for all: what makes it is their mean, what reads it their sum."""
    for parts in zip(*units, strict=True):
        values = torch.stack([_part(tensors[part.param], part) for part in parts])
        merged = values.mean(0) if parts[0].role == "produces" else values.sum(0)
        tensor = tensors[parts[0].param]
        tensor[_positions(tensor, parts[0])] = merged


def _part(tensor: Tensor, part: Slice) -> Tensor:
    return tensor.detach()[_positions(tensor, part)]


def _positions(tensor: Tensor, part: Slice) -> tuple[Tensor, ...]:
    """The outer product of a slice's positions, as tensors that index together."""
    sides = [
        torch.arange(size) if side is None else torch.tensor(side)
        for size, side in zip(tensor.shape, part.index, strict=True)
    ]
    return tuple(side.view(-1, *[1] * (len(sides) - 1 - axis)) for axis, side in enumerate(sides))
