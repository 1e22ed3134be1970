"""Refine: a few epochs of small steps take out of the network what layer-by-layer least squares cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.cuts import cut_points
from fxprune.calibrate.evaluate import Evaluator, attribute, outputs_of, to_device
from fxprune.calibrate.images import Calibration
from fxprune.coupling.kept import Kept
from fxprune.errors import RewriteError
from fxprune.passes.base import COUPLING, DENSE, PLAN, state
from fxprune.passes.choose import CALIBRATION, COST
from fxprune.passes.reconstruct import replace_tensor

REFINED = "refined"
State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Refine(PassBase):
    """Before: a reconstructed graph. After: the same graph with weights, biases and affines that bring its outputs, and
    the values between its blocks, closer to the dense network's, all at once.

    The loss is the squared error relative to the variance: of the outputs, plus `inside` times the mean over the cut
    points (nodes that everything flows through). The weights that do best on the held-out batches are kept, the ones
    before included, so that it never gets worse there. Running statistics, what `requires_grad` says and what needs no
    gradient in the graph stay as they are.

    epochs: most passes over the images.
    work: floating-point operations after which it stops, so that a large network on large images does not take hours.
    rate: size of a step of Adam, relative to the root mean square of a matrix; a tenth of that for a vector.
    batch_size: images a step.
    memory: bytes of dense values to keep between epochs; beyond, they are computed again.

    Reads dense, coupling, plan, calibration and cost from gm.meta["fxprune"]; writes "refined" there: the held-out loss
    before and after.
    """

    epochs: int = 10
    work: float = 5e12
    rate: float = 0.01
    inside: float = 5.0
    batch_size: int = 16
    seed: int = 0
    memory: int = 2 << 30
    progress: Callable[[int, int], None] | None = field(default=None, repr=False)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier passes hand on must be there."""
        missing = [key for key in (DENSE, COUPLING, PLAN, CALIBRATION) if key not in state(graph_module)]
        if missing:
            raise RewriteError(f"Refine needs {', '.join(missing)} in gm.meta: run it after Reconstruct")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Train on the calibration images; a second run changes nothing."""
        found = state(graph_module)
        if REFINED in found or not found[CALIBRATION].held_out:
            return PassResult(graph_module, False)
        lesson = _Lesson(graph_module, self.inside, self.batch_size, self.memory)
        best, before, after = self._train(lesson, graph_module)
        for name, tensor in best.items():
            replace_tensor(graph_module, name, tensor)
        found[REFINED] = (before, after)
        return PassResult(graph_module, after < before)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter is finite."""
        for name, tensor in graph_module.named_parameters():
            if not torch.isfinite(tensor).all():
                raise RewriteError(f"Refine left NaN or infinity in `{name}`")

    def _train(self, lesson: _Lesson, gm: fx.GraphModule) -> tuple[State, float, float]:
        """The best weights, and the held-out loss before and with them."""
        weights = {name: attribute(gm, name).clone().requires_grad_() for name in _trainable(gm)}
        optimizer = torch.optim.Adam([{"params": [w], "size": self._step_size(w)} for w in weights.values()])
        generator = torch.Generator().manual_seed(self.seed)
        total = self._steps(lesson, gm)
        before = best_loss = lesson.judge(weights)
        best: State = {}
        done = 0
        while done < total:
            for index in torch.randperm(len(lesson.training), generator=generator).tolist():
                if done < total:
                    for group in optimizer.param_groups:
                        group["lr"] = group["size"] * _schedule(done, total)
                    optimizer.zero_grad()
                    with torch.enable_grad():
                        lesson.loss(index, weights).backward()
                    optimizer.step()
                    done += 1
                    if self.progress is not None:
                        self.progress(done, total)
            loss = lesson.judge(weights)
            if loss < best_loss:
                best_loss, best = loss, {name: w.detach().clone() for name, w in weights.items()}
        return best, before, best_loss

    def _step_size(self, weight: Tensor) -> float:
        size = float(weight.detach().double().square().mean().sqrt())
        return self.rate * max(size, 1e-4) * (1.0 if weight.ndim > 1 else 0.1)

    def _steps(self, lesson: _Lesson, gm: fx.GraphModule) -> int:
        """Steps that the epochs take, or the work allows: forward and backward are three times the forward."""
        steps = self.epochs * len(lesson.training)
        cost = state(gm).get(COST)
        if cost is None:
            return steps
        kept = {name: len(units) for name, units in state(gm)[PLAN].kept.items()}
        each = 3 * cost.evaluate(kept)["flops"] + cost.evaluate()["flops"]
        return min(steps, max(1, int(self.work / max(1, each * self.batch_size))))


class _Lesson:
    """Small batches with what the dense network makes of them."""

    def __init__(self, gm: fx.GraphModule, inside: float, batch_size: int, memory: int) -> None:
        found = state(gm)
        self._weight_inside = inside
        calibration: Calibration = found[CALIBRATION]
        self._dense, self._pruned = Evaluator(found[DENSE]), Evaluator(gm)
        self._kept, self._coupling = Kept.under(found[COUPLING], found[PLAN]), found[COUPLING]
        self._outputs = outputs_of(gm)
        sources = {item.source for item in contractions(gm).values()}
        self._cuts = [name for name in cut_points(gm) if name in sources]
        self._batches = list(_cut_up(calibration, batch_size))
        self.training = [index for index, (_, held) in enumerate(self._batches) if not held]
        self._held = [index for index, (_, held) in enumerate(self._batches) if held]
        self._known: dict[int, State] = {}
        self._room = memory
        self._variance = self._variances()

    def loss(self, index: int, weights: State) -> Tensor:
        """The loss of the training batch at `index` under other weights, with its gradient."""
        return self._loss(self.training[index], weights)

    def judge(self, weights: State) -> float:
        """The mean loss over the held-out batches."""
        with torch.no_grad():
            losses = [float(self._loss(index, weights)) for index in self._held]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def _loss(self, index: int, weights: State) -> Tensor:
        batch, _ = self._batches[index]
        targets = self._targets(index)
        read = [node for node in self._pruned.nodes.values() if node.op == "get_attr" and node.target in weights]
        stand_ins = {node.name: weights[str(node.target)] for node in read}
        values = self._pruned(targets, {**to_device(self._pruned.gm, batch), **stand_ins})
        errors = {name: (values[name] - target).square().mean() for name, target in targets.items()}
        relative = {name: error / self._variance[name] for name, error in errors.items()}
        outputs = [relative[name] for name in self._outputs if name in relative]
        inside = [relative[name] for name in self._cuts]
        loss: Tensor = _mean(outputs) + self._weight_inside * _mean(inside)
        return loss

    def _targets(self, index: int) -> State:
        """The dense values at outputs and cut points, without the channels that are gone."""
        if index in self._known:
            return self._known[index]
        batch, _ = self._batches[index]
        with torch.no_grad():
            values = self._dense(dict.fromkeys([*self._outputs, *self._cuts]), to_device(self._dense.gm, batch))
        fields = self._coupling.fields
        targets = {
            name: self._kept.cut(value, fields.get(name, ()))
            for name, value in values.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        self._room -= sum(target.numel() * target.element_size() for target in targets.values())
        if self._room > 0:
            self._known[index] = targets
        return targets

    def _variances(self) -> dict[str, Tensor]:
        targets = self._targets(self._held[0])
        return {name: target.var().clamp_min(1e-12) for name, target in targets.items()}


def _trainable(gm: fx.GraphModule) -> list[str]:
    """Floating-point parameters that the graph reads, each under the first name that it is read by."""
    names: dict[int, str] = {}
    parameters = dict(gm.named_parameters(remove_duplicate=False))
    for node in gm.graph.nodes:
        parameter = parameters.get(str(node.target)) if node.op == "get_attr" else None
        if parameter is not None and parameter.is_floating_point():
            names.setdefault(id(parameter), str(node.target))
    shared = [name for name in parameters if name not in names.values()]
    return [name for name in names.values() if not any(parameters[other] is parameters[name] for other in shared)]


def _cut_up(calibration: Calibration, size: int) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
    for index, batch in enumerate(calibration.batches):
        for part in zip(*(column.split(size) for column in batch), strict=True):
            yield part, calibration.is_held_out(index)


def _schedule(step: int, total: int) -> float:
    """A warm-up over the first tenth, then half a cosine."""
    return min(1.0, (step + 1) / (0.1 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))


def _mean(losses: list[Any]) -> Any:
    return sum(losses) / len(losses) if losses else 0.0
