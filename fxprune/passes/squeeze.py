"""Squeeze: before channels are removed, what they carry moves into those that stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.calibrate.descent import Descent, trainable
from fxprune.calibrate.lesson import Lesson, Tensors
from fxprune.closed_form.moments import widened
from fxprune.coupling.kept import Kept
from fxprune.errors import RewriteError
from fxprune.passes.base import (
    CALIBRATION,
    COUPLING,
    DENSE,
    PLAN,
    TEACHER,
    clone,
    note_stage,
    replace_tensor,
    require,
    require_operators,
    state,
)
from fxprune.passes.learning import Learning
from fxprune.passes.search import corrected_error

SQUEEZED = "squeezed"


@dataclass(frozen=True, eq=False)
class Squeeze(Learning):
    """Before: a graph with a plan, not yet shrunk. After: the same graph with weights that do without the channels
    that are about to go, so that removing them changes little: the first of the two phases of PSP.

    All weights descend on the squared error of the outputs and of the values between blocks at the channels that stay,
    while a penalty on the matrices and kernels of the whole coupled group of each leaving channel, producers' and
    consumers' parts both, grows without limit. Its proximal step scales these parts; they follow (1 - t)^2 as t goes
    from 0 to 1. What is left of them at the end is zero. The weights before come back unless the result is better
    than they are, both without those parts, corrected by least squares, and judged on the held-out images.

    epochs: most passes over the images. work: floating-point operations after which it stops, as in Refine; where it
        does not come to an epoch, nothing is done.
    rate: size of a step, relative to the root mean square of a matrix; a tenth of that for a vector.
    inside: weight of the values between blocks. batch_size: images a step, in as many passes as the memory asks for.
    augment: mirror, shift and mix the images.

    Reads coupling, plan, calibration and cost from gm.meta["fxprune"]; hands on the graph as it was as "teacher".
    """

    epochs: float = 5
    work: float = 4e12
    rate: float = 0.04

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What Choose hands on must be there, and the channels that are to go as well."""
        require(graph_module, "Squeeze", COUPLING, PLAN, CALIBRATION)
        if DENSE in state(graph_module) and SQUEEZED not in state(graph_module):
            raise RewriteError("Squeeze came too late: Shrink has run, and the channels are gone. Put it before Shrink")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Descend under the growing penalty; a second run changes nothing."""
        found = state(graph_module)
        if SQUEEZED in found:
            return PassResult(graph_module, False)
        require_operators(graph_module, "Squeeze")
        found[SQUEEZED] = True
        if not self._can_learn(graph_module):
            return PassResult(graph_module, False)
        found[TEACHER] = clone(graph_module)
        lesson = self._lesson(graph_module)
        descent = self._descent(graph_module, lesson)
        if descent.steps < len(lesson.training):
            return PassResult(graph_module, False)
        weights = self._descend(graph_module, lesson, descent)
        before, after = (self._corrected(graph_module, each) for each in ({}, weights))
        better = after < before
        if better:
            for name, tensor in weights.items():
                replace_tensor(graph_module, name, tensor)
        if math.isfinite(min(before, after)):
            note_stage(graph_module, "squeeze", before, min(before, after))
        return PassResult(graph_module, better)

    def _corrected(self, gm: fx.GraphModule, weights: Tensors) -> float:
        """The held-out error when the channels go now, with these weights, and least squares corrects the rest."""
        twin = clone(gm)
        for name, tensor in weights.items():
            replace_tensor(twin, name, tensor)
        return corrected_error(twin, state(gm)[PLAN], self.seed)

    def _descend(self, gm: fx.GraphModule, lesson: Lesson, descent: Descent) -> Tensors:
        start = trainable(gm)
        leaving = _leaving(start, Kept.under(state(gm)[COUPLING], state(gm)[PLAN]))

        def penalise(weights: Tensors, done: float) -> None:
            shrinking = ((1 - done) / (1 - done + 1 / descent.steps)) ** 2
            for name, mask in leaving.items():
                weights[name].mul_(1 - (1 - shrinking) * mask)

        last, _ = descent.run(lesson, start, penalise)
        return {name: tensor.to(start[name].dtype) for name, tensor in last.items()}


def _leaving(weights: Tensors, kept: Kept) -> Tensors:
    """1 at the elements of each matrix or kernel that leave, 0 elsewhere; without those that stay whole."""
    masks = {}
    for name, weight in weights.items():
        stays = kept.stays(kept.coupling.param_fields.get(name, ()), weight.ndim)
        if weight.ndim > 1 and not bool(stays.all()):
            masks[name] = widened((~stays).to(weight))
    return masks
