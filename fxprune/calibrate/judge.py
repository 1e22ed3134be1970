"""How far the outputs of one network are from those of another, on calibration images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.evaluate import Evaluator, centred, is_floating, judged_of, to_device
from fxprune.calibrate.homes import batch_norm_after
from fxprune.calibrate.images import Calibration
from fxprune.calls import concrete_shape
from fxprune.coupling.kept import Kept
from fxprune.types import Coupling

FEW = 8  # images


def output_error(
    dense: fx.GraphModule,
    other: fx.GraphModule,
    calibration: Calibration,
    offsets: Mapping[str, Tensor] | None = None,
) -> float:
    """The squared error of the floating-point outputs, relative to their variance; infinite where it is not finite.

    Where no output is floating-point, that of the values of which they are made; infinite where none keeps its shape.
    On the held-out batches; on all of them where none is held out. The variance is that of each image's output about
    its own mean, so that logits count by how they differ between classes; where nothing varies, their squares.

    offsets: constants added to values of `other`, as in Evaluator.
    """
    first, second = Evaluator(dense), Evaluator(other, offsets)
    names = comparable(dense, other)
    error = variance = energy = 0.0
    numbers: dict[str, list[Tensor]] = {}  # outputs of one number an image, which vary between images alone
    with torch.no_grad():
        for batch in judging(calibration):
            wanted, found = (each(names, to_device(each.gm, batch)) for each in (first, second))
            for name, target in wanted.items():
                error += squared(found[name], target)
                energy += squared(torch.zeros_like(target), target)
                if target.numel() > len(batch[0]):
                    variance += spread(target)
                else:
                    numbers.setdefault(name, []).append(target.reshape(-1, 1))
    variance += sum(spread(torch.cat(values)) for values in numbers.values())
    relative = error / (variance or energy or 1.0)
    return relative if names and math.isfinite(relative) else math.inf


def layer_errors(
    dense: fx.GraphModule, other: fx.GraphModule, kept: Kept, calibration: Calibration
) -> dict[str, float]:
    """The squared error of each contraction's output at the channels that stay, relative to its variance, by weight.

    Behind the BatchNorm that alone reads it, where there is one. Errors of the layers before are in it. A few
    images of each batch are looked at, for the outputs of all layers are held at once.
    """
    first, second = Evaluator(dense), Evaluator(other)
    layers = {_behind_norm(second.nodes[item.name]): item.weight for item in contractions(other).values()}
    errors, variances = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    with torch.no_grad():
        for whole in judging(calibration):
            batch = whole if calibration.fixed else tuple(column[:FEW] for column in whole)
            wanted, found = (each(layers, to_device(each.gm, batch)) for each in (first, second))
            for name in layers:
                target = kept.cut(wanted[name], kept.coupling.fields.get(name, ())).double()
                errors[name] += float((found[name].double() - target).square().sum())
                variances[name] += float((target - target.mean()).square().sum())
    return {weight: errors[name] / max(variances[name], 1e-30) for name, weight in layers.items()}


def _behind_norm(node: fx.Node) -> str:
    return (batch_norm_after(node) or node).name


def judges(gm: fx.GraphModule, coupling: Coupling) -> bool:
    """Whether there is a floating-point value to judge by, whatever leaves."""
    return any(not coupling.fields.get(name) for name in comparable(gm, gm))


def comparable(dense: fx.GraphModule, other: fx.GraphModule) -> list[str]:
    """The floating-point values by which the networks are judged, where they have the same shape in both."""
    first, second = ({node.name: node for node in gm.graph.nodes} for gm in (dense, other))
    judged = (name for name in judged_of(dense) if is_floating(first[name]))
    return [name for name in judged if concrete_shape(first[name]) == concrete_shape(second[name])]


def judging(calibration: Calibration) -> Iterator[tuple[Tensor, ...]]:
    """The held-out batches, or all where none is held out."""
    first = len(calibration.batches) - calibration.held_out if calibration.held_out else 0
    return (calibration.batches[index] for index in range(first, len(calibration.batches)))


def spread(value: Any) -> float:
    """Squared distance of each image's output from the mean of its elements."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    return float(centred(value.double()).square().sum())


def squared(value: Any, target: Any) -> float:
    """Squared distance between two outputs, where the target is finite; 0 for what is not floating-point."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    return float((value.double() - target.double())[target.isfinite()].square().sum())
