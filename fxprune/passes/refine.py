"""Refine: gradient descent takes out of the network what layer-by-layer least squares cannot."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.descent import Descent, Report, affordable_steps, trainable, unheard
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.judge import output_error
from fxprune.calibrate.lesson import Lesson
from fxprune.checkpoint import Checkpoint
from fxprune.coupling.kept import Kept
from fxprune.passes.base import (
    CALIBRATION,
    COST,
    COUPLING,
    DENSE,
    PLAN,
    note_stage,
    replace_tensor,
    require,
    require_finite,
    state,
    teacher,
)

REFINED = "refined"


@dataclass(frozen=True, eq=False)
class Refine(PassBase):
    """Before: a shrunk graph. After: the same graph with weights, biases and affines that bring its outputs, and the
    values between its blocks, closer to the dense network's, all at once.

    The loss is the squared error relative to the variance: of the outputs, plus `inside` times the mean over the cut
    points (nodes that everything flows through, behind additions and activations). The weights that do best on the
    held-out batches are kept, unless the outputs there came closer without them. Running statistics, what
    `requires_grad` says and what needs no gradient in the graph stay as they are.

    epochs: most passes over the images.
    work: floating-point operations after which it stops, so that a large network on large images does not take hours.
    rate: size of a step of Adam, relative to the root mean square of a matrix; a tenth of that for a vector.
    batch_size: images a step.
    augment: mirror and shift the images; the dense network looks at each one anew.
    memory: bytes of dense values to keep between epochs; beyond, they are computed again.

    Reads dense (or teacher), coupling, plan, calibration and cost from gm.meta["fxprune"].
    """

    epochs: float = 60
    work: float = 2e13
    rate: float = 0.02
    inside: float = 5.0
    batch_size: int = 32
    augment: bool = True
    seed: int = 0
    memory: int = 2 << 30
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    progress: Report = field(default=unheard, repr=False)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier passes hand on must be there."""
        require(graph_module, "Refine", DENSE, COUPLING, PLAN, CALIBRATION)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Train on the calibration images; a second run changes nothing."""
        found = state(graph_module)
        calibration: Calibration = found[CALIBRATION]
        if REFINED in found or not calibration.held_out or not calibration.teaches:
            return PassResult(graph_module, False)
        found[REFINED] = True
        lesson = Lesson(
            graph_module,
            teacher(graph_module),
            Kept.under(found[COUPLING], found[PLAN]),
            found[CALIBRATION],
            inside=self.inside,
            batch_size=self.batch_size,
            augment=self.augment,
            memory=self.memory,
        )
        steps = affordable_steps(self.epochs, len(lesson.training), self._step_cost(graph_module), self.work)
        start = trainable(graph_module)
        before = output_error(teacher(graph_module), graph_module, found[CALIBRATION])
        descent = Descent(steps, self.rate, self.seed, "refine", self.checkpoint, self.progress)
        _, best, *_ = descent.run(lesson, start)
        for name, tensor in best.items():
            replace_tensor(graph_module, name, tensor.to(start[name].dtype))
        after = output_error(teacher(graph_module), graph_module, found[CALIBRATION])
        better = after < before
        if not better:
            for name in best:
                replace_tensor(graph_module, name, start[name])
        note_stage(graph_module, "refine", before, min(before, after))
        return PassResult(graph_module, better)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter is finite."""
        require_finite(graph_module, "Refine")

    def _step_cost(self, gm: fx.GraphModule) -> float:
        """Floating-point operations of a step: forward and backward are three times the forward; the teacher's comes on
        top."""
        found = state(gm)
        if COST not in found:
            return 0
        kept = {name: len(units) for name, units in found[PLAN].kept.items()}
        cost = found[COST]
        each: float = 3 * cost.evaluate(kept)["flops"] + cost.evaluate()["flops"]
        return each * self.batch_size
