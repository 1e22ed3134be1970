"""How far the outputs of one network are from those of another, on calibration images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.evaluate import Evaluator, Values, centred, is_floating, judged_of, to_device
from fxprune.calibrate.homes import batch_norm_after
from fxprune.calibrate.images import Calibration
from fxprune.calls import concrete_shape, state_of
from fxprune.coupling.kept import Kept
from fxprune.types import Coupling

FEW = 8  # images
MEMORY = 1 << 26  # bytes of values that are remembered of a dense network


def output_error(
    dense: fx.GraphModule,
    other: fx.GraphModule,
    calibration: Calibration,
    offsets: Mapping[str, Tensor] | None = None,
) -> float:
    """The squared error of a floating-point output, relative to its variance; infinite where it is not finite.

    Of several outputs, the mean over those that vary: whatever their scales, each counts alike. Where no output is
    floating-point, that of the values of which they are made; infinite where none keeps its shape. On the held-out
    batches; on all of them where none is held out. The variance is that of each image's output about its own mean, so
    that logits count by how they differ between classes; where nothing varies, their squares.

    offsets: constants added to values of `other`, as in Evaluator.
    """
    second = Evaluator(other, offsets)
    names = comparable(dense, other)
    errors, energies = (dict.fromkeys(names, 0.0) for _ in range(2))
    spreads = {name: Spread() for name in names}
    with torch.no_grad():
        for batch, wanted in _wanted(dense, names, calibration):
            found = second(names, to_device(other, batch))
            for name, target in wanted.items():
                errors[name] += squared(found[name], target)
                energies[name] += squared(torch.zeros_like(target), target)
                spreads[name].add(target, len(batch[0]))
    variances = {name: each.total() for name, each in spreads.items()}
    telling = [name for name in names if variances[name]] or names
    relative = sum(errors[name] / (variances[name] or energies[name] or 1.0) for name in telling) / max(1, len(telling))
    return relative if names and math.isfinite(relative) else math.inf


def _wanted(
    dense: fx.GraphModule, names: Sequence[str], calibration: Calibration
) -> Iterator[tuple[tuple[Tensor, ...], Values]]:
    """The batches to judge by with the values of a dense network; small ones are remembered for as long as it lives."""
    tensors = (*dense.parameters(), *dense.buffers())
    key = (tuple(names), *map(state_of, tensors))
    found = _KNOWN.get(dense)
    if found is not None and found.calibration is calibration and found.key == key:
        yield from zip(calibration.batches_of(calibration.judging), found.values, strict=True)
        return
    evaluator, values, room = Evaluator(dense), list[Values](), MEMORY
    for batch in calibration.batches_of(calibration.judging):
        wanted = evaluator(names, to_device(dense, batch))
        yield batch, wanted
        room -= sum(value.numel() * value.element_size() for value in wanted.values())
        values += [wanted] if room > 0 else []
    if room > 0:
        _KNOWN[dense] = _Known(calibration, key, values, tensors)


@dataclass(frozen=True)
class _Known:
    """Values of a dense network on the batches to judge by, and of what they are; what lives has its id to itself."""

    calibration: Calibration
    key: tuple[Any, ...]
    values: list[Values]
    alive: tuple[Tensor, ...]


_KNOWN: WeakKeyDictionary[fx.GraphModule, _Known] = WeakKeyDictionary()


def forget(dense: fx.GraphModule) -> None:
    """Let go of what is remembered of a network, and of the images that it was judged on."""
    _KNOWN.pop(dense, None)


def layer_errors(
    dense: fx.GraphModule, others: Sequence[fx.GraphModule], kept: Kept, calibration: Calibration
) -> list[dict[str, float]]:
    """The squared error of each contraction's output at the channels that stay, relative to its variance, by weight,
    for each of several networks with the same contractions.

    Behind the BatchNorm that alone reads it, where there is one. Errors of the layers before are in it. A few
    images of each batch are looked at, for the outputs of all layers are held at once.
    """
    first, rest = Evaluator(dense), [Evaluator(other) for other in others]
    layers = [
        {_behind_norm(each.nodes[item.name]): item.weight for item in contractions(each.gm).values()} for each in rest
    ]
    errors, variances = [dict.fromkeys(names, 0.0) for names in layers], dict.fromkeys(chain(*layers), 0.0)
    with torch.no_grad():
        for whole in calibration.batches_of(calibration.judging):
            batch = whole if calibration.fixed else tuple(column[:FEW] for column in whole)
            wanted = first(variances, to_device(dense, batch))
            targets = {name: kept.cut(wanted[name], kept.coupling.fields.get(name, ())).double() for name in wanted}
            for name, target in targets.items():
                variances[name] += float((target - target.mean()).square().sum())
            for each, error in zip(rest, errors, strict=True):
                found = each(error, to_device(each.gm, batch))
                for name in error:
                    error[name] += float((found[name].double() - targets[name]).square().sum())
    return [
        {weight: error[name] / max(variances[name], 1e-30) for name, weight in names.items()}
        for names, error in zip(layers, errors, strict=True)
    ]


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


class Spread:
    """The squared distance of each image's output from the mean of its elements, summed over batches.

    Outputs of one number an image vary between images alone: they are taken from the mean of all.
    """

    def __init__(self) -> None:
        self._sum, self._numbers = 0.0, list[Tensor]()

    def add(self, value: Any, images: int) -> None:
        """Take in the output for some images; what is not floating-point has no spread."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return
        if value.numel() > images:
            self._sum += _squares(value)
        else:
            self._numbers.append(value.reshape(-1, 1))

    def total(self) -> float:
        """The sum over all that has been taken in."""
        return self._sum + (_squares(torch.cat(self._numbers)) if self._numbers else 0.0)


def _squares(output: Tensor) -> float:
    return float(centred(output.double()).square().sum())


def squared(value: Any, target: Any) -> float:
    """Squared distance between two outputs, where the target is finite; 0 for what is not floating-point."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    return float((value.double() - target.double())[target.isfinite()].square().sum())
