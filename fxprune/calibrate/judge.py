"""How far the outputs of one network are from those of another, on calibration images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.evaluate import Evaluator, centred, outputs_of, to_device
from fxprune.calibrate.homes import batch_norm_after
from fxprune.calibrate.images import Calibration
from fxprune.coupling.kept import Kept


def output_error(
    dense: fx.GraphModule,
    other: fx.GraphModule,
    calibration: Calibration,
    offsets: Mapping[str, Tensor] | None = None,
) -> float:
    """The squared error of the floating-point outputs, relative to their variance; infinite where it is not finite.

    On the held-out batches; on all of them where none is held out. The variance is that of each image's output about
    its own mean, so that logits count by how they differ between classes.

    offsets: constants added to values of `other`, as in Evaluator.
    """
    first, second = Evaluator(dense), Evaluator(other, offsets)
    names = outputs_of(dense)
    error = variance = 0.0
    with torch.no_grad():
        for batch in judging(calibration):
            wanted, found = (each(names, to_device(each.gm, batch)) for each in (first, second))
            error += sum(squared(found[name], wanted[name]) for name in names)
            variance += sum(spread(wanted[name]) for name in names)
    relative = error / max(variance, 1e-30)
    return relative if math.isfinite(relative) else math.inf


def layer_errors(
    dense: fx.GraphModule, other: fx.GraphModule, kept: Kept, calibration: Calibration
) -> dict[str, float]:
    """The squared error of each contraction's output at the channels that stay, relative to its variance, by weight.

    Behind the BatchNorm that alone reads it, where there is one. Errors of the layers before are in it.
    """
    first, second = Evaluator(dense), Evaluator(other)
    layers = {_behind_norm(second.nodes[item.name]): item.weight for item in contractions(other).values()}
    errors, variances = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    with torch.no_grad():
        for batch in judging(calibration):
            wanted, found = (each(layers, to_device(each.gm, batch)) for each in (first, second))
            for name in layers:
                target = kept.cut(wanted[name], kept.coupling.fields.get(name, ())).double()
                errors[name] += float((found[name].double() - target).square().sum())
                variances[name] += float((target - target.mean()).square().sum())
    return {weight: errors[name] / max(variances[name], 1e-30) for name, weight in layers.items()}


def _behind_norm(node: fx.Node) -> str:
    return (batch_norm_after(node) or node).name


def judging(calibration: Calibration) -> list[tuple[Tensor, ...]]:
    """The held-out batches, or all where none is held out."""
    first = len(calibration.batches) - calibration.held_out if calibration.held_out else 0
    return [calibration.batches[index] for index in range(first, len(calibration.batches))]


def spread(value: Any) -> float:
    """Squared distance of each image's output from the mean of its elements."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    return float(centred(value.double()).square().sum())


def squared(value: Any, target: Any) -> float:
    """Squared distance between two outputs; 0 for what is not floating-point."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return float((value.double() - target.double()).square().sum()) if floating else 0.0
