"""Gradient descent on a lesson: Adam with steps in proportion to each layer's own weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.lesson import Lesson, Tensors, widened
from fxprune.checkpoint import Checkpoint

Report = Callable[[int, int, float], None]  # steps done, all steps, held-out loss


def unheard(done: int, total: int, error: float) -> None:
    """The report that tells nobody."""


@dataclass(frozen=True)
class Descent:
    """How to descend. Every layer moves by the same share of its own size a step, whatever number of losses reaches it,
    so that early layers do not run ahead of the others.

    steps: of Adam, in all; those of an epoch that the last one does not fill count too.
    rate: the size of a step, relative to the root mean square of a matrix; a tenth of that for a vector.
    seed: of the order of the batches and of the augmentation.
    stage: under which name the checkpoint knows this descent.
    """

    steps: int
    rate: float
    seed: int
    stage: str
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    report: Report = field(default=unheard, repr=False)

    def run(
        self, lesson: Lesson, start: Tensors, after_step: Callable[[Tensors, float], None] | None = None
    ) -> tuple[Tensors, Tensors]:
        """The last weights, and the ones that did best on the held-out batches.

        start: weights by name; they are not changed. What comes back is float32 where they are of half precision; the
            best are empty where none beat them.
        after_step: called with the weights and the share of the steps that are done; may change them in place.
        """
        weights = {name: widened(tensor.detach()).clone().requires_grad_() for name, tensor in start.items()}
        if not weights or lesson.says_nothing:
            return dict(start), {}
        optimizer = torch.optim.Adam([{"params": [w], "size": self._step_size(w)} for w in weights.values()])
        generator = torch.Generator().manual_seed(self.seed)
        progress = self._resumed(weights, optimizer, generator) or _Progress(lesson.judge(weights))
        while progress.done < self.steps:
            for index in torch.randperm(len(lesson.training), generator=generator).tolist():
                if progress.done < self.steps:
                    self._step(lesson, weights, optimizer, generator, index, progress.done)
                    progress.done += 1
                    if after_step is not None:
                        with torch.no_grad():
                            after_step(weights, progress.done / self.steps)
                    self.report(progress.done, self.steps, progress.best_loss)
            progress.take_note(lesson.judge(weights), weights)
            self._keep(progress, weights, optimizer, generator)
        return {name: w.detach() for name, w in weights.items()}, progress.best

    def _step(
        self,
        lesson: Lesson,
        weights: Tensors,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        index: int,
        done: int,
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["size"] * _schedule(done, self.steps)
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = lesson.loss(index, weights, generator)
        if loss.requires_grad:
            loss.backward()
            optimizer.step()

    def _step_size(self, weight: Tensor) -> float:
        size = float(weight.detach().double().square().mean().sqrt())
        return self.rate * max(size, 1e-4) * (1.0 if weight.ndim > 1 else 0.1)

    def _keep(
        self, progress: _Progress, weights: Tensors, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        self.checkpoint.save(
            self.stage,
            {
                "progress": [progress.done, progress.best_loss],
                "weights": {name: w.detach() for name, w in weights.items()},
                "best": progress.best,
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
            },
        )

    def _resumed(
        self, weights: Tensors, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> _Progress | None:
        found = self.checkpoint.load(self.stage)
        if found is None:
            return None
        with torch.no_grad():
            for name, tensor in found["weights"].items():
                weights[name].copy_(tensor)
        optimizer.load_state_dict(found["optimizer"])
        generator.set_state(found["generator"])
        done, best_loss = found["progress"]
        return _Progress(best_loss, dict(found["best"]), done)


class _Progress:
    """How far a descent is, and the best that it has found."""

    def __init__(self, best_loss: float, best: Tensors | None = None, done: int = 0) -> None:
        self.best_loss, self.best, self.done = best_loss, best or {}, done

    def take_note(self, loss: float, weights: Tensors) -> None:
        """Remember the weights if they are the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best = loss, {name: w.detach().clone() for name, w in weights.items()}


def trainable(gm: fx.GraphModule) -> Tensors:
    """Floating-point parameters that the graph reads, each under the first name that it is read by."""
    names: dict[int, str] = {}
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    for node in gm.graph.nodes:
        parameter = parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is not None and parameter.is_floating_point():
            names.setdefault(id(parameter), str(node.target))
    shared = [name for name in parameters if name not in names.values()]
    alone = [name for name in names.values() if not any(parameters[other] is parameters[name] for other in shared)]
    return {name: attribute(gm, name) for name in alone}


def affordable_steps(epochs: float, batches: int, each: float, work: float) -> int:
    """Steps that some epochs of `batches` take, or as many as `work` floating-point operations pay for; at least 1.

    each: what a step costs.
    """
    return max(1, min(int(epochs * batches), int(work / max(1.0, each))))


def _schedule(step: int, total: int) -> float:
    """A warm-up over the first tenth, then half a cosine."""
    return min(1.0, (step + 1) / (0.1 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
