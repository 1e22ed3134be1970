"""Gradient descent on a lesson, with steps in proportion to each layer's own weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.utils import get_total_norm

from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.lesson import Lesson, Tensors
from fxprune.calibrate.muon import Muon
from fxprune.checkpoint import Checkpoint
from fxprune.closed_form.moments import widened
from fxprune.progress import Measured, unheard

_KEPT = ("rate", "progress", "weights", "best", "optimizers", "scaler", "generator")  # in a checkpoint
AfterStep = Callable[[Tensors, float], None]  # the weights, the share of the steps that are done


@dataclass(frozen=True)
class Descent:
    """How to descend. Every layer moves by the same share of its own size a step, whatever number of losses reaches it,
    so that early layers do not run ahead of the others.

    A matrix, or a kernel as the matrix of its filters, moves along its orthogonalised momentum (Muon: Jordan et al.,
    2024), which takes directions of small gradients as seriously as those of large ones; a vector moves by Adam.

    steps: in all; those of an epoch that the last one does not fill count too.
    rate: the size of a step, relative to the root mean square of a matrix; a tenth of that for a vector.
    seed: of the order of the batches and of the augmentation.
    stage: under which name the checkpoint knows this descent.
    """

    steps: int
    rate: float
    seed: int
    stage: str
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    report: Measured = field(default=unheard, repr=False)

    def run(self, lesson: Lesson, start: Tensors, after_step: AfterStep | None = None) -> tuple[Tensors, Tensors]:
        """The last weights, and the ones that did best on the held-out batches.

        start: weights by name; they are not changed. What comes back is float32 where they are of half precision; the
            best are empty where none beat them.
        after_step: called with the weights and the share of the steps that are done; may change them in place.
        """
        if not start or lesson.says_nothing:
            return dict(start), {}
        weights = _Weights(start, self.rate)
        generator = self._generator()
        progress = self._resumed(weights, generator) or _Progress(lesson.judge(weights.tensors()))
        while progress.done < self.steps:
            self._epoch(lesson, weights, generator, progress, after_step)
            progress.take_note(lesson.judge(weights.tensors()), weights.tensors())
            self._keep(progress, weights, generator)
        return weights.tensors(), progress.best

    def short_run(self, lesson: Lesson, start: Tensors, loss: float) -> Tensors:
        """The weights after all steps, of which nothing is judged or kept. `loss` is what is reported meanwhile."""
        weights, generator, progress = _Weights(start, self.rate), self._generator(), _Progress(loss)
        while progress.done < self.steps:
            self._epoch(lesson, weights, generator, progress)
        return weights.tensors()

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _epoch(
        self,
        lesson: Lesson,
        weights: _Weights,
        generator: torch.Generator,
        progress: _Progress,
        after_step: AfterStep | None = None,
    ) -> None:
        for index in torch.randperm(len(lesson.training), generator=generator).tolist():
            if progress.done < self.steps:
                self._step(lesson, weights, generator, lesson.training[index], progress.done)
                progress.done += 1
                if after_step is not None:
                    after_step(weights.tensors(), progress.done / self.steps)
                self.report(progress.done, self.steps, progress.best_loss)

    def _step(self, lesson: Lesson, weights: _Weights, generator: torch.Generator, first: int, done: int) -> None:
        with torch.enable_grad():
            for loss in lesson.losses(first, weights.tensors(detached=False), generator):
                if loss.requires_grad:
                    weights.scaler.scale(loss).backward()
        weights.step(_schedule(done, self.steps))

    def _keep(self, progress: _Progress, weights: _Weights, generator: torch.Generator) -> None:
        self.checkpoint.save(
            self.stage,
            {
                "rate": self.rate,
                "progress": [progress.done, progress.best_loss],
                "weights": weights.tensors(),
                "best": progress.best,
                "optimizers": [optimizer.state_dict() for optimizer in weights.optimizers],
                "scaler": weights.scaler.state_dict(),
                "generator": generator.get_state(),
            },
        )

    def _resumed(self, weights: _Weights, generator: torch.Generator) -> _Progress | None:
        found = self.checkpoint.load(self.stage, *_KEPT)
        if found is None:
            return None
        for name, tensor in weights.tensors().items():
            tensor.copy_(found["weights"][name])
        for optimizer, known in zip(weights.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        weights.scaler.load_state_dict(found["scaler"])
        generator.set_state(found["generator"])
        done, best_loss = found["progress"]
        return _Progress(best_loss, dict(found["best"]), done)


class _Weights:
    """The weights that descend, and what moves them."""

    def __init__(self, start: Tensors, rate: float) -> None:
        self._shapes = {name: tensor.shape for name, tensor in start.items()}
        self._leaves = {name: _matrix(widened(tensor)).requires_grad_() for name, tensor in start.items()}
        matrices = [_stepping(leaf, rate) for leaf in self._leaves.values() if leaf.ndim > 1]
        vectors = [_stepping(leaf, 0.1 * rate) for leaf in self._leaves.values() if leaf.ndim < 2]
        self.optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self.optimizers.append(Muon(matrices))
        if vectors:
            self.optimizers.append(torch.optim.Adam(vectors))
        half = any(tensor.dtype is torch.float16 for tensor in start.values())  # gradients of 1 / pixels would vanish
        self.scaler = torch.amp.GradScaler(next(iter(start.values())).device.type, enabled=half)

    def tensors(self, detached: bool = True) -> Tensors:
        """The weights by name, in their own shapes; what is written into them stays."""
        leaves = {name: leaf.detach() if detached else leaf for name, leaf in self._leaves.items()}
        return {name: leaf.view(self._shapes[name]) for name, leaf in leaves.items()}

    def step(self, scale: float) -> None:
        """Move by `scale` times the rate, along the gradients that have come together since the last step.

        Where one of them is no number, there is no step: it would spoil the weights and the momenta for good.
        """
        gradients = [leaf.grad for leaf in self._leaves.values() if leaf.grad is not None]
        if not self.scaler.is_enabled() and not bool(get_total_norm(gradients).isfinite()):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            return
        stepped = False
        for optimizer in self.optimizers:
            leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
            if all(leaf.grad is None for leaf in leaves):
                continue
            for group in optimizer.param_groups:
                group["lr"] = group["size"] * scale
            self.scaler.step(optimizer)
            optimizer.zero_grad()
            stepped = True
        if stepped:
            self.scaler.update()


def _matrix(tensor: Tensor) -> Tensor:
    """A copy: a kernel as the matrix of its filters, anything of fewer dimensions as it is."""
    fresh = tensor.detach().clone(memory_format=torch.contiguous_format)
    return fresh.flatten(1) if fresh.ndim > 2 else fresh


def _stepping(leaf: Tensor, rate: float) -> dict[str, Any]:
    """A group of parameters of its own: steps are relative to the root mean square."""
    size = float(leaf.detach().double().square().mean().sqrt())
    return {"params": [leaf], "size": rate * max(size, 1e-4)}


class _Progress:
    """How far a descent is, and the best that it has found."""

    def __init__(self, best_loss: float, best: Tensors | None = None, done: int = 0) -> None:
        self.best_loss, self.best, self.done = best_loss, best or {}, done

    def take_note(self, loss: float, weights: Tensors) -> None:
        """Remember the weights if they are the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best = loss, {name: w.detach().clone() for name, w in weights.items()}


def trainable(gm: fx.GraphModule) -> Tensors:
    """Floating-point parameters that the graph reads, by the name that it reads them by; none that it reads by two."""
    names: dict[int, set[str]] = {}
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    for node in gm.graph.nodes:
        parameter = parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is not None and parameter.is_floating_point():
            names.setdefault(id(parameter), set()).add(str(node.target))
    return {name: attribute(gm, name) for name, *others in names.values() if not others}


def affordable_steps(epochs: float, batches: int, each: float, work: float) -> int:
    """Steps that some epochs of `batches` take, or as many as `work` floating-point operations pay for; at least 1.

    each: what a step costs.
    """
    return max(1, min(int(epochs * batches), int(work / max(1.0, each))))


def _schedule(step: int, total: int) -> float:
    """A warm-up over the first tenth, then half a cosine."""
    return min(1.0, (step + 1) / (0.1 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
