"""One walk over the dense network: what each contraction reads, and how much the network's outputs feel its errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import Contraction, contractions
from fxprune.calibrate.evaluate import Evaluator, attribute, to_device
from fxprune.calibrate.homes import bias_home
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.room import images_at_once
from fxprune.calibrate.sampling import THOROUGH, Sampling, enough_rows, sample
from fxprune.calibrate.sensitivity import projected_gradients
from fxprune.closed_form.moments import Moments, widened
from fxprune.closed_form.removal import System
from fxprune.errors import CalibrationError
from fxprune.progress import Counted
from fxprune.types import ChannelGroup, Coupling


@dataclass(frozen=True)
class Observed:
    """What the calibration images say about one contraction.

    covariance: of its rows [systems, inputs, inputs], float64; about zero where no bias can take up a mean.
    mean: of its rows [systems, inputs]; zero where no bias can take it up.
    weights: [systems, inputs, outputs].
    sensitivity: [systems, outputs, outputs]: the squared error of the network's outputs, relative to their variance,
        that an error e of this contraction's output makes is about e^T sensitivity e, with e^2 averaged over positions.
    """

    covariance: Tensor
    mean: Tensor
    weights: Tensor
    sensitivity: Tensor


def observe(
    gm: fx.GraphModule,
    coupling: Coupling,
    calibration: Calibration,
    *,
    sampling: Sampling = THOROUGH,
    seed: int = 0,
    memory: int = 1 << 30,
    progress: Counted | None = None,
) -> dict[str, Observed]:
    """Second moments and sensitivities of every contraction that reads a group, by the name of its weight.

    Held-out images are not looked at: they judge what is chosen by these moments.

    sampling: how many images are looked at, how many of them serve for the sensitivities, which cost a backward pass,
        and how many output positions of an image serve as rows, drawn with `seed`.
    memory: bytes that the activations of one pass may take; batches are cut to fit.
    progress: called with (images done, images).
    """
    readers = [item for item in contractions(gm).values() if _reads_a_group(coupling, item.weight)]
    names, sources = [item.name for item in readers], [item.source for item in readers]
    tallies = {item.name: _Tally(gm, item) for item in readers}
    images = int(min(sampling.images, calibration.count_of(calibration.fitting)))
    inputs = {item.name: item.matrix(attribute(gm, item.weight)).shape[1] for item in readers}
    each, least = sampling.rows_per_image, sampling.rows_per_input
    rows = {name: enough_rows(count, images, each, least) for name, count in inputs.items()}
    generator = torch.Generator().manual_seed(seed)
    evaluator = Evaluator(gm)
    chunk = images_at_once(gm, memory)
    seen = 0
    for batch in calibration.batches_of(calibration.first(calibration.fitting, images)):
        for part in calibration.cut(batch, chunk):
            felt = seen < sampling.gradient_images
            values, gradients = projected_gradients(evaluator, names, to_device(gm, part), generator, sources, felt)
            seen += len(part[0])
            for item in readers:
                y = values[item.name]
                index = sample(item.positions(y), math.ceil(rows[item.name] * len(part[0])), generator).to(y.device)
                tallies[item.name].add(values[item.source], y, index)
                if item.name in gradients:
                    tallies[item.name].feel(gradients[item.name], len(part[0]))
        if progress is not None:
            progress(min(seen, images), images)
    return {item.weight: tallies.pop(item.name).observed() for item in readers}  # one at a time: they are large


def systems_of(
    group: ChannelGroup, coupling: Coupling, observed: Mapping[str, Observed], gm: fx.GraphModule
) -> list[System]:
    """The maps that read `group`, in the terms of closed_form: one for each contraction and each of its systems."""
    by_weight = {item.weight: item for item in contractions(gm).values()}
    result = []
    for name in dict.fromkeys(axis.param for axis in group.axes if coupling.roles[axis] == "consumes"):
        if name in observed:
            units = column_units(by_weight[name], coupling, group, attribute(gm, name))
            seen = observed[name]
            for covariance, weights, sensitivity, ids in zip(
                seen.covariance, seen.weights, seen.sensitivity, units, strict=True
            ):
                if bool((ids >= 0).any()):
                    result.append(System(covariance, weights @ _root(sensitivity), ids))
    return result


def column_units(item: Contraction, coupling: Coupling, group: ChannelGroup, weight: Tensor) -> Tensor:
    """The unit of `group` behind each input of a contraction [systems, inputs]; -1 where it is none of the group's."""
    result = torch.full(item.matrix(weight).shape[:2], -1)
    for field in coupling.param_fields[item.weight]:
        if field.axis != 0:
            ids = item.matrix(field.ids.expand(weight.shape))[:, :, 0] - group.offset
            result = torch.where((ids >= 0) & (ids < group.width), ids, result)
    return result


class _Tally:
    """Sums over batches for one contraction."""

    def __init__(self, gm: fx.GraphModule, item: Contraction) -> None:
        weight = attribute(gm, item.weight)
        self.item, self.weights = item, item.matrix(weight).double()
        systems, inputs, outputs = self.weights.shape
        self.moments = Moments(systems, inputs, device=weight.device)
        self.sensitivity = torch.zeros(systems, outputs, outputs, dtype=torch.float64, device=weight.device)
        self.images = 0
        node = next(node for node in gm.graph.nodes if node.name == item.name)
        self.centred = bias_home(node) is not None

    def add(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        """Take in the rows at `index` of the input."""
        self.moments.add(self.item.rows(x, y, index))

    def feel(self, gradient: Tensor, images: int) -> None:
        """Take in the gradient at the output. The images are counted by the caller: an axis may come before theirs, or
        be folded into it, as tokens and windows are."""
        g = torch.nan_to_num(widened(self.item.targets(gradient)), 0.0, 0.0, 0.0)  # a slope of infinity says nothing
        self.sensitivity += (g.mT @ g).double()
        self.images += images

    def observed(self) -> Observed:
        covariance = self.moments.second(self.centred)[0]
        if not bool(covariance.isfinite().all()):
            raise CalibrationError(
                f"what the layer of `{self.item.weight}` reads of the calibration images is not finite, or too large "
                "to be squared: leave out the images that make it so"
            )
        mean = self.moments.mean_x * self.centred
        return Observed(covariance, mean, self.weights, self.sensitivity / max(1, self.images))


def _reads_a_group(coupling: Coupling, weight: str) -> bool:
    return any(axis.param == weight and role == "consumes" for axis, role in coupling.roles.items())


def _root(matrix: Tensor) -> Tensor:
    """R with R R^T = matrix, for a symmetric positive semidefinite matrix; the identity for zero."""
    if not bool(matrix.any()):
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root
