"""The whole path: capture, analyse, score, allocate, select, calibrate, rewrite, verify, emit."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase
from torch.utils import _pytree as pytree

from fxprune.allocate import patterns_of
from fxprune.budget import Budget
from fxprune.calibrate.images import calibration_for
from fxprune.calls import device_of
from fxprune.capture import capture, capture_info, double_batch_of_one
from fxprune.checkpoint import Checkpoint, fingerprint
from fxprune.codegen import save
from fxprune.diff import Diff, diff
from fxprune.drawing import draw
from fxprune.errors import FxpruneError
from fxprune.latency import Timing
from fxprune.passes.base import COUPLING, DENSE, PLAN, clone, own_copy, release_images, state, teacher
from fxprune.passes.lift import Lift
from fxprune.passes.verify import confirm
from fxprune.progress import Progress, heard_by
from fxprune.randomness import seeded
from fxprune.recipes import Settings, passes_of
from fxprune.report import Report
from fxprune.report_html import page
from fxprune.summary import summary
from fxprune.types import Coupling, Plan


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns.

    model: the smaller network as a module-level GraphModule, with the original's names; in evaluation mode, and where
        it was cropped before training in the mode of the original.
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
        """A strict export of the model; batch and other sizes are dynamic as far as they were when it was captured."""
        args, kwargs, dynamic = self._inputs
        values = {str(n.target): n.meta.get("val") for n in self.model.graph.nodes if n.op == "placeholder"}
        given = [*list(values)[: len(args)], *kwargs]
        spec = {name: pytree.tree_map(_dynamic_sizes, values[name]) for name in given}
        doubled = tuple(double_batch_of_one(value) if dynamic else value for value in args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns about its own internals
            return torch.export.export(self.model, doubled, dict(kwargs), dynamic_shapes=spec, strict=True)

    def diff(self) -> Diff:
        """The dense network beside this one: modules and code; prints as text, notebooks show it in two columns."""
        return diff(state(self.model)[DENSE], self.model)

    def to_html(self) -> str:
        """The report as one web page, with the coupling as a drawing, the code before and after, and the plan."""
        further = {
            "Coupling": draw(self.coupling, self.plan),
            "Before and after": self.diff().to_html(),
            "Plan": f"<details><summary>as JSON</summary><pre>{escape(self.plan.to_json())}</pre></details>",
        }
        return page(self.report.to_dict(), further)

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


def _dynamic_sizes(value: Any) -> dict[int, Any] | None:
    """Which sizes of a captured input may change, as torch.export wants to be told."""
    sizes = enumerate(value.shape) if isinstance(value, Tensor) else ()
    free = (dim for dim, size in sizes if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None)
    return dict.fromkeys(free, Dim.AUTO) or None


def pipeline(
    recipe: str = "psp",
    *,
    budget: Budget,
    calibration: Any = None,
    verify: bool = True,
    seed: int = 0,
    importance: str | None = None,
    allocation: str | None = None,
    multiple_of: int | None = None,
    freeze: Iterable[str] = (),
    max_ratio: float | None = None,
    heads: bool = False,
    timing: Timing | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[..., Any] | None = None,
) -> tuple[PassBase, ...]:
    """The passes of a recipe, in order, for `prune` or any PassManager. For the options see `prune`.

    checkpoint: as `Checkpoint.open` gives it; a folder alone does not say which run its state is of.
    """
    if not isinstance(checkpoint, Checkpoint | None):
        raise FxpruneError("checkpoint= of a pipeline must be a fxprune.checkpoint.Checkpoint: use Checkpoint.open")
    settings = Settings(
        budget=budget,
        calibration=calibration,
        verify=verify,
        seed=seed,
        importance=importance,
        allocation=allocation,
        multiple_of=multiple_of,
        freeze=freeze,
        max_ratio=max_ratio,
        heads=heads,
        timing=timing or Timing(),
        checkpoint=checkpoint or Checkpoint(),
        progress=heard_by(progress),
    )
    return passes_of(recipe, settings)


def prune(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    budget: Budget,
    calibration: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    recipe: str = "psp",
    verify: bool = True,
    seed: int = 0,
    importance: str | None = None,
    allocation: str | None = None,
    multiple_of: int | None = None,
    freeze: Iterable[str] = (),
    max_ratio: float | None = None,
    heads: bool = False,
    timing: Timing | None = None,
    checkpoint: str | PathLike[str] | None = None,
    progress: Callable[..., Any] | None = None,
) -> Result:
    """A smaller network that still works: shrunk to a budget, reconstructed from a few unlabelled images, proven.

    model: pruned as in evaluation; it is not modified.
    example_inputs: a tuple of tensors; a lone tensor is taken as one.
    budget: a share of the original, or absolute numbers; met, never overshot. Or as small as an error allows.
    calibration: a tensor, a DataLoader, or any iterable of tensors, tuples (first item = input) or dicts; unlabelled.
    recipe: the pipeline of passes: "fast" (closed form, seconds), "psp" (two-phase reconstruction, minutes), "best" (as
        psp, with several times the work), "datafree" (on images made from the network itself) or "magnitude"
        (nothing corrected).
    verify: compare, in float64, the shrunk network with the oracle and the lifted one with its graph.
    importance, allocation: how units are scored and how groups share the budget, by the names in
        `fxprune.importance.IMPORTANCES` and `fxprune.allocate.METHODS`; the recipe's own where None.
    multiple_of: kept widths are multiples of this where a group shrinks. By default those of all groups but a few are
        multiples of 16 or 8, which hardware likes, where that costs no accuracy that can be foretold.
    freeze: names or globs of parameters, modules or groups that must not shrink.
    max_ratio: the largest share of any one group that may go; 0.95 where nothing is said.
    heads: whether attention loses whole heads; by default all heads lose dimensions, equally many.
    timing: how `Budget(latency=)` is measured; by default one input at a time, call by call.
    checkpoint: a folder for the state of a long run: when it is interrupted, the same call goes on from there, to the
        same bits. It is removed at the end. The data must come in the same order again: no shuffling loader.
    progress: called as progress(stage, done, total, error); where it takes but three arguments, without the error.

    Raises an FxpruneError that says what to do; see fxprune.errors.
    """
    settings = Settings(
        budget=budget,
        calibration=calibration,
        verify=verify,
        seed=seed,
        importance=importance,
        allocation=allocation,
        multiple_of=multiple_of,
        freeze=patterns_of(freeze),
        max_ratio=max_ratio,
        heads=heads,
        timing=timing or Timing(),
        progress=heard_by(progress),
    )
    inputs = (example_inputs, example_kwargs, dynamic_shapes)
    result = run_recipe(recipe, settings, model, *inputs, checkpoint=checkpoint)
    if checkpoint is not None:
        Checkpoint(Path(checkpoint)).discard()
    return result


def run_recipe(
    recipe: str,
    settings: Settings,
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    checkpoint: str | PathLike[str] | None = None,
) -> Result:
    """As `prune`, with its options in `settings`; but the state in the folder `checkpoint` stays, for the caller to
    discard when the result is in safety."""
    passes = passes_of(recipe, settings)  # what is not known is refused before anything is traced
    started = time.perf_counter()
    captured = capture(model, example_inputs, example_kwargs, dynamic_shapes)
    seconds = {"capture": time.perf_counter() - started}
    gm = own_copy(captured)
    if checkpoint is not None:
        passes = passes_of(recipe, _restartable(gm, recipe, settings, checkpoint))
    with seeded(settings.seed):  # for what the network itself draws
        seconds |= run_passes(gm, passes, verify=settings.verify, progress=settings.progress)
    report = summary(model, gm, settings.budget, recipe, settings.seed, seconds)
    release_images(gm, state(gm)[DENSE], teacher(gm))  # they are the caller's: a result does not keep them alive
    info = capture_info(captured)
    return Result(gm, report, state(gm)[PLAN], state(gm)[COUPLING], (info.args, info.kwargs, info.dynamic_batch))


def run_passes(gm: fx.GraphModule, passes: Sequence[PassBase], *, verify: bool, progress: Progress) -> dict[str, float]:
    """Run passes one after another, in place, and give the seconds that each took.

    verify: compare the lifted network with its graph. Errors are raised as they are, where PassManager wraps them.
    """
    seconds = {}
    for done, step in enumerate(passes):
        started = time.perf_counter()
        unlifted = clone(gm) if verify and isinstance(step, Lift) else None
        with _devices_as_named():
            step(gm)
        if unlifted is not None:
            confirm(unlifted, gm)
        seconds[type(step).__module__.rpartition(".")[2]] = time.perf_counter() - started
        progress("passes", done + 1, len(passes))
    return seconds


def _devices_as_named() -> AbstractContextManager[Any]:
    """Tensors are made on the CPU where passes name no device, whatever `torch.set_default_device` says."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def _restartable(gm: fx.GraphModule, recipe: str, settings: Settings, folder: str | PathLike[str]) -> Settings:
    """The settings of a run that keeps its state in `folder`; what tells it from other runs is there as well."""
    given, options = settings.calibration, ("seed", "importance", "allocation", "multiple_of", "max_ratio", "heads")
    calibration = None if given is None else calibration_for(gm, given, seed=settings.seed)
    images = () if calibration is None else enumerate(tensor for batch in calibration.batches for tensor in batch)
    key = {
        "recipe": recipe,
        **{name: getattr(settings, name) for name in options},
        "freeze": list(settings.freeze),
        "timing": str(settings.timing) if settings.budget.latency is not None else None,
        "budget": {**settings.budget.limits, "max_error": settings.budget.max_error},
        "device": str(device_of(gm)),
        "graph": hashlib.blake2b(gm.code.encode(), digest_size=16).hexdigest(),
        "weights": fingerprint([*gm.named_parameters(), *gm.named_buffers()]),
        "calibration": fingerprint((str(number), tensor) for number, tensor in images),
    }
    return replace(settings, calibration=calibration, checkpoint=Checkpoint.open(folder, key))
