"""The whole path: capture, analyse, score, allocate, select, calibrate, rewrite, verify, emit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.capture import capture, capture_info, double_batch_of_one
from fxprune.codegen import save
from fxprune.errors import FxpruneError, PlanError
from fxprune.passes.base import COUPLING, PLAN, clone, state
from fxprune.passes.choose import COST, Choose, Progress, silent
from fxprune.passes.fuse import Fuse
from fxprune.passes.lift import Lift
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.refine import Refine
from fxprune.passes.shrink import Shrink
from fxprune.passes.tidy import Tidy
from fxprune.passes.verify import VERIFICATION, Verify, confirm
from fxprune.report import GroupChange, LayerError, Report
from fxprune.types import Budget, Coupling, Plan

_RANDOM_DEPTH = ("StochasticDepth", "DropPath")  # modules that leave no trace in a graph captured in evaluation


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns.

    model: the smaller network as a module-level GraphModule, with the original's names; in evaluation mode.
    report: before and after, per group; prints as a table; .to_json(), .to_html().
    plan: which units of which group stay.
    coupling: which channels went together, and what was held.
    """

    model: fx.GraphModule
    report: Report
    plan: Plan
    coupling: Coupling = field(repr=False)
    _inputs: tuple[tuple[Any, ...], Mapping[str, Any], bool] = field(repr=False)

    def program(self) -> ExportedProgram:
        """A strict export of the model, with a dynamic batch where the original allows it."""
        args, kwargs, dynamic = self._inputs
        names = [node.target for node in self.model.graph.nodes if node.op == "placeholder"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        spec = {
            str(name): {0: Dim.AUTO} if dynamic and isinstance(value, Tensor) else None for name, value in given.items()
        }
        doubled = tuple(double_batch_of_one(value) if dynamic else value for value in args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            return torch.export.export(self.model, doubled, dict(kwargs), dynamic_shapes=spec, strict=True)

    def save(self, directory: str | PathLike[str]) -> Path:
        """Write model.py, model.safetensors, plan.json and report.json into `directory`, all or nothing.

        They load where fxprune is not installed:

            import sys; sys.path.insert(0, "out")
            from safetensors.torch import load_file
            import model
            network = model.ResNet()    # the last class in model.py, named like the original's
            network.load_state_dict(load_file("out/model.safetensors"))

        Raises OutputError where the directory cannot be written or holds something else.
        """
        files = {"plan.json": self.plan.to_json(), "report.json": self.report.to_json()}
        return save(self.model, Path(directory), files)


def pipeline(
    recipe: str = "fast",
    *,
    budget: Budget,
    calibration: Any = None,
    verify: bool = True,
    seed: int = 0,
    multiple_of: int = 1,
    freeze: Iterable[str] = (),
    max_ratio: float | None = None,
    heads: bool = False,
    progress: Progress = silent,
) -> tuple[PassBase, ...]:
    """The passes of a recipe, in order, for `prune` or any PassManager.

    recipe: "fast" (second-order scores, greedy allocation, least squares, a few epochs of refinement) or "magnitude"
        (the weights alone, one ratio for all groups, nothing corrected; needs no calibration).
    """
    if recipe not in RECIPES:
        raise PlanError(f"recipe {recipe!r} is not known; there are: {', '.join(RECIPES)}")

    importance, allocation, corrects = RECIPES[recipe]
    solving, training = (partial(progress, stage) for stage in ("reconstruct", "refine"))
    corrections = (Reconstruct(seed=seed, progress=solving), Fuse(), Refine(seed=seed, progress=training))
    images = calibration if corrects else None  # what corrects nothing looks at no image
    choose = Choose(budget, images, importance, allocation, multiple_of, freeze, max_ratio, seed, heads, progress)
    return (
        choose,
        PinSizes(heads),
        Shrink(),
        *((Verify(seed),) if verify else ()),
        *(corrections if corrects else ()),
        Tidy(),
        Lift(),
    )


RECIPES: dict[str, tuple[str, str, bool]] = {
    "fast": ("second_order", "greedy", True),
    "magnitude": ("magnitude", "uniform", False),
}


def prune(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    budget: Budget,
    calibration: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    recipe: str = "fast",
    verify: bool = True,
    seed: int = 0,
    multiple_of: int = 1,
    freeze: Iterable[str] = (),
    max_ratio: float | None = None,
    heads: bool = False,
    progress: Progress | None = None,
) -> Result:
    """A smaller network that still works: shrunk to a budget, reconstructed from a few unlabelled images, proven.

    model: pruned as in evaluation; it is not modified.
    example_inputs: a tuple of tensors; a lone tensor is taken as one.
    budget: a share of the original, or absolute numbers; met, never overshot.
    calibration: a tensor, a DataLoader, or any iterable of tensors, tuples (first item = input) or dicts; unlabelled.
    recipe: the pipeline of passes, see `pipeline`.
    verify: compare, in float64, the shrunk network with the oracle and the lifted one with its graph.
    multiple_of: kept widths are multiples of this where a group shrinks.
    freeze: names or globs of parameters, modules or groups that must not shrink.
    max_ratio: the largest share of any one group that may go; 0.95 where nothing is said.
    heads: whether attention loses whole heads; by default all heads lose dimensions, equally many.
    progress: called as progress(stage, done, total).

    Raises an FxpruneError that says what to do; see fxprune.errors.
    """
    if not isinstance(budget, Budget):
        raise FxpruneError(f"budget must be a Budget, e.g. fxprune.Budget(flops=0.58), not {type(budget).__name__}")
    seconds: dict[str, float] = {}
    report_to = progress or silent
    started = time.perf_counter()
    captured = capture(model, example_inputs, example_kwargs, dynamic_shapes)
    seconds["capture"] = time.perf_counter() - started
    gm = clone(captured)
    passes = pipeline(
        recipe,
        budget=budget,
        calibration=calibration,
        verify=verify,
        seed=seed,
        multiple_of=multiple_of,
        freeze=freeze,
        max_ratio=max_ratio,
        heads=heads,
        progress=report_to,
    )
    for done, step in enumerate(passes):
        started = time.perf_counter()
        unlifted = clone(gm) if verify and isinstance(step, Lift) else None
        step(gm)
        if unlifted is not None:
            confirm(unlifted, gm)
        seconds[type(step).__module__.rpartition(".")[2]] = time.perf_counter() - started
        report_to("passes", done + 1, len(passes))
    info = capture_info(captured)
    report = _report(model, gm, budget, recipe, seed, seconds)
    return Result(gm, report, state(gm)[PLAN], state(gm)[COUPLING], (info.args, info.kwargs, info.dynamic_batch))


def _report(
    model: object, gm: fx.GraphModule, budget: Budget, recipe: str, seed: int, seconds: Mapping[str, float]
) -> Report:
    found = state(gm)
    coupling: Coupling = found[COUPLING]
    plan: Plan = found[PLAN]
    dense = found[COST].evaluate()
    kept = {name: len(units) for name, units in plan.kept.items()}
    return Report(
        before=dense,
        after=found[COST].evaluate(kept),
        budget=budget.absolute(dense),
        groups=tuple(
            GroupChange(group.name, group.width, kept.get(group.name, group.width), tuple(map(str, group.axes)))
            for group in coupling.groups
        ),
        held={str(axis): reason for axis, reason in coupling.held.items()},
        layers=tuple(LayerError(*error) for error in found.get("errors", ())),
        verification=found.get(VERIFICATION),
        notes=_notes(model, gm, coupling),
        seconds=seconds,
        recipe=recipe,
        seed=seed,
    )


def _notes(model: object, gm: fx.GraphModule, coupling: Coupling) -> tuple[str, ...]:
    """What a user must know of the result."""
    notes = [*capture_info(gm).notes, *state(gm).get("training_notes", ())]
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
