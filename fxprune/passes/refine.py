"""Refine: gradient descent takes out of the network what layer-by-layer least squares cannot."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from fxprune.calibrate.descent import trainable
from fxprune.calibrate.rate import at_measured_rate
from fxprune.passes.base import CALIBRATION, COUPLING, DENSE, PLAN, require, require_fused, require_operators, state
from fxprune.passes.learning import Learning, put_if_better

REFINED = "refined"


@dataclass(frozen=True, eq=False)
class Refine(Learning):
    """Before: a shrunk graph. After: the same graph with weights, biases and affines that bring its outputs, and the
    values between its blocks, closer to the dense network's, all at once.

    The loss is the squared error relative to the variance: of the outputs, plus `inside` times the mean over those
    of blocks (nodes that everything flows through, behind additions and activations), of which each element counts as
    much as the outputs feel it. The weights that do best on the held-out batches are kept, unless the outputs there
    came closer without them. Running statistics, what `requires_grad` says and what needs no gradient in the graph stay
    as they are.

    epochs: most passes over the images.
    work: floating-point operations after which it stops, so that a large network on large images does not take hours;
        twenty times as many where the network is on an accelerator.
    rate: the largest size of a step, relative to the root mean square of a matrix, a tenth of that for a vector; short
        runs, which come on top of the work, say whether smaller ones do better.
    batch_size: images a step, in as many passes as the memory asks for.
    augment: mirror, shift and mix the images; the dense network looks at each one anew.
    memory: bytes of dense values to keep between epochs; beyond, they are computed again.

    Reads dense (or teacher), coupling, plan, calibration and cost from gm.meta["fxprune"].
    """

    epochs: float = 60
    work: float = 2e13
    rate: float = 0.02

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier passes hand on must be there."""
        require(graph_module, "Refine", DENSE, COUPLING, PLAN, CALIBRATION)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Train on the calibration images; a second run changes nothing."""
        if REFINED in state(graph_module) or not self._can_learn(graph_module):
            return PassResult(graph_module, False)
        require_operators(graph_module, "Refine")
        require_fused(graph_module, "Refine")
        state(graph_module)[REFINED] = True
        lesson = self._lesson(graph_module)
        start = trainable(graph_module)
        descent = at_measured_rate(self._descent(graph_module, lesson), lesson, start)
        _, best = descent.run(lesson, start)
        return PassResult(graph_module, put_if_better(graph_module, "refine", best))
