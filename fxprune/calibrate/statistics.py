"""The statistics of BatchNorms: as the calibration images give them, and as they are remembered of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.evaluate import Evaluator, Values, attribute, outputs_of, to_device
from fxprune.calibrate.homes import BATCH_NORM
from fxprune.calibrate.images import Calibration
from fxprune.calls import source_of


def batch_norm_statistics(gm: fx.GraphModule, calibration: Calibration, images: int = 256) -> dict[str, Tensor]:
    """Running means and variances of the BatchNorms in evaluation, estimated anew, by the names of their buffers.

    Each BatchNorm normalises a batch by the batch's own statistics, as in training, so that one walk does for all of
    them. Whole batches are taken until they hold `images`; the held-out ones are not looked at. A statistic that
    several BatchNorms share is left out.
    """
    found = _Statistics(gm)
    with torch.no_grad():
        for batch in calibration.batches_of(calibration.first(calibration.fitting, images)):
            found(outputs_of(gm), to_device(gm, batch))
    return found.estimates()


class _Statistics(Evaluator):
    """An evaluator whose BatchNorms use, and add up, the statistics of the batch."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        uses: dict[str, int] = {}
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
        self._norms = {node.name for node in gm.graph.nodes if _own_statistics(node, uses)}
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def run(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        if node.name not in self._norms:
            return super().run(node, values)
        arguments: Any = fx.map_arg(node.args, lambda argument: values[argument.name])
        x, weight, bias, _, _, _, _, eps, _ = arguments
        result, mean, deviation = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        variance = (deviation.double().square().reciprocal() - eps).clamp_min(0)  # the kernel gives 1 / sqrt(var + eps)
        for buffer, value in zip(node.args[3:5], (mean.double(), variance), strict=True):
            assert isinstance(buffer, fx.Node)
            self._add(str(buffer.target), value, x.numel() // x.shape[1])
        return result

    def _add(self, name: str, value: Tensor, weight: int) -> None:
        total, count = self._sums.get(name, (torch.zeros_like(value), 0))
        self._sums[name] = total + weight * value, count + weight

    def estimates(self) -> dict[str, Tensor]:
        """The mean over the batches of each statistic."""
        return {name: total / count for name, (total, count) in self._sums.items()}


def _own_statistics(node: fx.Node, uses: Mapping[str, int]) -> bool:
    """Whether the node is a BatchNorm in evaluation whose running statistics nothing else reads."""
    if node.target is not BATCH_NORM or node.args[5] is not False:
        return False
    buffers = node.args[3:5]
    return all(isinstance(buffer, fx.Node) and uses.get(str(buffer.target)) == 1 for buffer in buffers)


@dataclass(frozen=True)
class Norm:
    """A BatchNorm in evaluation: the node that it reads, and the statistics that it expects there.

    mean, variance: float32, [channels]; a channel that hardly varies is no more than 30 times as strict as the others.
    first: whether no other BatchNorm comes before it.
    """

    source: str
    mean: Tensor
    variance: Tensor
    first: bool

    @property
    def untouched(self) -> bool:
        """Whether the statistics are those that every BatchNorm begins with."""
        return not bool(self.mean.any()) and bool((self.variance == 1).all())

    def mismatch(self, value: Tensor) -> Tensor:
        """Squared differences of means and deviations, relative to the deviation, averaged over the channels."""
        axes = [axis for axis in range(value.ndim) if axis != 1]
        variance, mean = torch.var_mean(value.float(), axes, correction=0)
        deviation = (variance / self.variance).clamp_min(1e-6).sqrt()
        return ((mean - self.mean).square() / self.variance + (deviation - 1).square()).mean()


def norms_of(gm: fx.GraphModule) -> list[Norm]:
    """The BatchNorms in evaluation, in the order of the graph."""
    found, behind = [], set[fx.Node]()  # the nodes behind a BatchNorm
    for node in gm.graph.nodes:
        if any(argument in behind for argument in node.all_input_nodes):
            behind.add(node)
        if node.target is BATCH_NORM and node.args[5] is False:
            mean, variance = (attribute(gm, str(statistic.target)).float() for statistic in node.args[3:5])
            floor = 1e-3 * float(variance.mean()) + 1e-8
            found.append(Norm(source_of(node).name, mean, variance.clamp_min(floor), node not in behind))
            behind.add(node)
    return found


def mean_mismatch(norms: Sequence[Norm], evaluator: Evaluator, inputs: Values) -> Tensor:
    """How far the inputs are from what the BatchNorms expect, averaged over these; zero where there is none."""
    values = evaluator([norm.source for norm in norms], inputs)
    losses = [norm.mismatch(values[norm.source]) for norm in norms]
    return torch.stack(losses).mean() if losses else torch.zeros(())


def unlikeness(gm: fx.GraphModule, calibration: Calibration, images: int = 64) -> float | None:
    """How far the means and deviations of some images are from those that the BatchNorms remember of the training.

    The mean over BatchNorms and channels of ((m - M) / S)^2 + (s / S - 1)^2; None where there is no BatchNorm.
    """
    norms, evaluator = norms_of(gm), Evaluator(gm)
    found, seen = 0.0, 0
    if not norms:
        return None
    with torch.no_grad():
        for batch in calibration.batches_of(calibration.first(range(len(calibration.batches)), images)):
            found += len(batch[0]) * float(mean_mismatch(norms, evaluator, to_device(gm, batch)))
            seen += len(batch[0])
    return found / max(1, seen)
