"""fxprune, as the accuracy table and the ablation run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase

import fxprune as fp
from benchmarks.accuracy_rows import Made, Task
from fxprune.passes.base import clone

CORRECTIONS = ("Squeeze", "Refine", "Recalibrate")  # what "least squares alone" goes without


def recipe(name: str) -> Callable[[Task], Made]:
    """The row that runs a recipe as users do; it notes the error of the outputs on the held-out images."""

    def make(task: Task) -> Made:
        images: Tensor | None = task.images
        given = example(task)
        if name == "datafree":
            images, given = None, tuple(map(torch.randn_like, given))
        result = fp.prune(
            task.model,
            given,
            budget=fp.Budget(flops=task.share),
            calibration=images,
            recipe=name,
            seed=task.seed,
            progress=progress if sys.stderr.isatty() else None,
        )
        return result.model, {"held_out": result.report.stages[-1][2]} if result.report.stages else {}

    return make


def least_squares(task: Task) -> Made:
    """`psp` without its first phase, its training and its BatchNorm re-estimation."""
    return run(task, without(passes(task), CORRECTIONS)), {}


def passes(task: Task) -> tuple[PassBase, ...]:
    """The passes of `psp`."""
    budget, shown = fp.Budget(flops=task.share), progress if sys.stderr.isatty() else None
    return fp.pipeline("psp", budget=budget, calibration=task.images, seed=task.seed, progress=shown)


def without(steps: Iterable[PassBase], names: Iterable[str]) -> tuple[PassBase, ...]:
    """The passes but for those of these classes. Raises ValueError for a class that none of them has."""
    steps, names = tuple(steps), set(names)
    if missing := names - {type(step).__name__ for step in steps}:
        raise ValueError(f"the pipeline has no pass {', '.join(sorted(missing))}")
    return tuple(step for step in steps if type(step).__name__ not in names)


def run(task: Task, steps: Iterable[PassBase]) -> fx.GraphModule:
    """The network after these passes."""
    gm = clone(fp.capture(task.model, example(task)))
    for step in steps:
        step(gm)
    return gm


def example(task: Task) -> tuple[Tensor, ...]:
    """Two images, where the network is."""
    return (task.images[:2].to(next(task.model.parameters()).device),)


def progress(stage: str, done: int, total: int) -> None:
    """A line on the terminal that is written anew with every step."""
    print(f"\r\033[K  {stage} {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
