"""What the passes that correct share: descent on a lesson, and keeping only what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.calibrate.descent import Descent, affordable_steps
from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.judge import comparable, output_error
from fxprune.calibrate.lesson import Lesson
from fxprune.calls import device_of
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
    require_finite,
    state,
    teacher,
)
from fxprune.progress import Measured, unheard

FASTER = 20  # times the work that an accelerator is given, which does it sooner than a CPU does it once


@dataclass(frozen=True, eq=False)
class Learning(PassBase):
    """A pass by gradient descent on the calibration images; for the fields see Refine."""

    epochs: float
    work: float
    rate: float
    inside: float = 5.0
    batch_size: int = 32
    augment: bool = True
    seed: int = 0
    memory: int = 1 << 30
    checkpoint: Checkpoint = field(default_factory=Checkpoint, repr=False)
    progress: Measured = field(default=unheard, repr=False)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter is finite."""
        require_finite(graph_module, type(self).__name__)

    def _can_learn(self, gm: fx.GraphModule) -> bool:
        """Whether there are images to learn from, and others to judge by."""
        calibration: Calibration = state(gm)[CALIBRATION]
        return bool(calibration.held_out) and calibration.teaches

    def _lesson(self, gm: fx.GraphModule) -> Lesson:
        found = state(gm)
        return Lesson(
            gm,
            teacher(gm),
            Kept.under(found[COUPLING], found[PLAN]),
            found[CALIBRATION],
            inside=self.inside,
            batch_size=self.batch_size,
            augment=self.augment,
            memory=self.memory,
        )

    def _descent(self, gm: fx.GraphModule, lesson: Lesson) -> Descent:
        """As many steps as the epochs take, or the work pays for."""
        stage = type(self).__name__.lower()
        work = self.work * (1 if device_of(gm).type == "cpu" else FASTER)
        steps = affordable_steps(self.epochs, len(lesson.training), lesson.images_a_step * self._image_cost(gm), work)
        return Descent(steps, self.rate, self.seed, stage, self.checkpoint, self.progress)

    def _image_cost(self, gm: fx.GraphModule) -> float:
        """Floating-point operations of an image in a step: forward and backward are three times the forward; the
        teacher's comes on top."""
        found = state(gm)
        if COST not in found:
            return 0
        shrunk = found[PLAN].counts if DENSE in found else {}
        each: float = 3 * found[COST].evaluate(shrunk)["flops"] + found[COST].evaluate()["flops"]
        return each


def put_if_better(gm: fx.GraphModule, stage: str, tensors: Mapping[str, Tensor]) -> bool:
    """Put these tensors in place, by name, where that lowers the held-out error of the outputs.

    Nothing is put in place where one of them is too large for the dtype there.
    """
    old = {name: attribute(gm, name) for name in tensors}
    fresh = {name: tensor.to(old[name].dtype) for name, tensor in tensors.items()}
    if not comparable(teacher(gm), gm) or not all(bool(tensor.isfinite().all()) for tensor in fresh.values()):
        return False
    before = output_error(teacher(gm), gm, state(gm)[CALIBRATION])
    for name, tensor in fresh.items():
        replace_tensor(gm, name, tensor)
    after = output_error(teacher(gm), gm, state(gm)[CALIBRATION])
    if not after < before:
        for name, tensor in old.items():
            replace_tensor(gm, name, tensor)
    note_stage(gm, stage, before, min(before, after))
    return after < before
