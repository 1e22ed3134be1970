"""What a finished run has to report: before and after, and what a user must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx, nn

from fxprune.budget import Budget
from fxprune.calibrate.evaluate import judged_of, outputs_of
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.statistics import norms_of
from fxprune.capture import capture_info
from fxprune.passes.base import CALIBRATION, COST, COUPLING, LATENCIES, PLAN, STAGES, UNLIKENESS, state, teacher
from fxprune.passes.compare import ERRORS
from fxprune.passes.configure import CONFIGURED
from fxprune.passes.initialise import NOTES
from fxprune.passes.synthesise import SYNTHESISED
from fxprune.passes.verify import VERIFICATION
from fxprune.report import GroupChange, LayerDensity, LayerError, Report, StageError
from fxprune.types import Coupling, Plan
from fxprune.widths import Configured

_RANDOM_DEPTH = ("StochasticDepth", "DropPath")  # modules that leave no trace in a graph captured in evaluation
FEW = 64  # images, below which least squares and gradients have little to go by
UNLIKE = 0.25  # distance of the statistics, above which images are not those that the network was trained on
LARGE = 0.25  # share of the variance of the outputs that is lost, above which answers change often


def summary(
    model: object, gm: fx.GraphModule, budget: Budget, recipe: str, seed: int, seconds: Mapping[str, float]
) -> Report:
    """The report of the run that ended in `gm`."""
    found = state(gm)
    coupling: Coupling = found[COUPLING]
    plan: Plan = found[PLAN]
    configured: Configured | None = found.get(CONFIGURED)
    dense = found[COST].evaluate(kinds=budget.kinds)
    kept = plan.counts
    return Report(
        before=dense,
        after=found[COST].evaluate(kept, budget.kinds),
        budget=budget.absolute(dense),
        max_error=budget.max_error,
        groups=tuple(
            GroupChange(group.name, group.width, kept.get(group.name, group.width), tuple(map(str, group.axes)))
            for group in coupling.groups
        ),
        held={str(axis): reason for axis, reason in coupling.held.items()},
        layers=tuple(LayerError(*error) for error in found.get(ERRORS, ())),
        stages=tuple(StageError(*error) for error in found.get(STAGES, ())),
        verification=found.get(VERIFICATION),
        notes=(*_notes(model, gm, coupling), *_notes_before_training(gm, seed)),
        weak=tuple(_weaknesses(gm, budget)),
        seconds=seconds,
        recipe=recipe,
        seed=seed,
        densities=tuple(LayerDensity(name, *item) for name, item in configured.densities.items()) if configured else (),
        objective=configured.objective if configured else {},
        unverified="a network that grows has no oracle" if plan.repeats else Report.unverified,
    )


def _weaknesses(gm: fx.GraphModule, budget: Budget) -> Iterator[str]:
    """Why the result may be worse than it could be."""
    yield from _weak_calibration(gm)
    stages = state(gm).get(STAGES, ())
    if not stages:
        return
    error = stages[-1][2]
    if error > LARGE:
        yield f"{error:.0%} of the variance of the network's outputs is lost on held-out images: allow a larger budget"
    if budget.max_error is not None and error > budget.max_error:
        yield f"the held-out error is {error:.4f}, above max_error={budget.max_error}: another recipe may reach it"


def _weak_calibration(gm: fx.GraphModule) -> Iterator[str]:
    """Why the images may have taught too little."""
    calibration: Calibration | None = state(gm).get(CALIBRATION)
    if calibration is not None:
        if SYNTHESISED in state(gm):
            yield "errors are those on images made from the network itself: real ones, even a hundred, correct better"
            norms = norms_of(teacher(gm))
            if not norms:
                yield "without BatchNorm such images are mere noise: little can be learned from them"
            elif all(norm.untouched for norm in norms):
                yield "the BatchNorms have the statistics that they began with, and remember no images: was it trained?"
        if (found := state(gm).get(UNLIKENESS) or 0.0) > UNLIKE:
            yield (
                f"the images are unlike those that the BatchNorms remember of the training ({found:.2f}, where less "
                f"than {UNLIKE} is usual): preprocess them as there, and give images of the same kind"
            )
        images = calibration.count if calibration.distinct is None else calibration.distinct
        if images < FEW:
            several = "s" * (images != 1)
            yield f"only {images} different calibration image{several}: give a few hundred for a better result"
        if not calibration.teaches:
            yield "nothing was corrected, and units went by magnitude: what fits so few images is wrong for others"
        elif not calibration.held_out:
            yield "no calibration image could be held out, so that nothing judges the corrections: give more images"
        elif state(gm).get(ERRORS) and not state(gm).get(STAGES):
            yield "nothing judged the corrections: no floating-point value that the results are made of keeps its shape"


def _notes(model: object, gm: fx.GraphModule, coupling: Coupling) -> tuple[str, ...]:
    """What a user must know of the result."""
    notes = [*capture_info(gm).notes, *state(gm).get("training_notes", ())]
    if LATENCIES in state(gm):
        notes.append(f"latency is in nanoseconds, {state(gm)[LATENCIES].manner}")
    if state(gm).get(STAGES) and (judged := judged_of(teacher(gm))) != outputs_of(teacher(gm)):
        notes.append(f"the outputs are whole numbers: errors are those of {', '.join(judged)}, of which they are made")
    if coupling.changes_statistics:
        names = ", ".join(coupling.changes_statistics[:3])
        more = f" and {len(coupling.changes_statistics) - 3} more" if len(coupling.changes_statistics) > 3 else ""
        notes.append(f"normalisations take their statistics over the kept channels alone: {names}{more}")
    if isinstance(model, nn.Module):
        lost = [name for name, module in model.named_modules() if type(module).__name__ in _RANDOM_DEPTH]
        attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention) and m.dropout]
        if attention:
            notes.append(f"the dropout of {len(attention)} attention modules is not applied in training")
        if lost:
            notes.append(
                f"{len(lost)} modules of stochastic depth do nothing in evaluation and are not in the result: "
                "plan.apply(model) keeps them"
            )
    return tuple(notes)


def _notes_before_training(gm: fx.GraphModule, seed: int) -> Iterator[str]:
    """What a user must know of a network whose widths were set before its training."""
    configured: Configured | None = state(gm).get(CONFIGURED)
    if configured is not None:
        yield from configured.notes
        if configured.drawn:
            yield f"which channels of a group stay does not matter before training: they were drawn with seed {seed}"
        yield from state(gm).get(NOTES, ())
