"""What a network is to learn from the dense one: its outputs, and the values between its blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.augment import augmented, is_image
from fxprune.calibrate.cuts import block_outputs
from fxprune.calibrate.evaluate import Evaluator, Values, attribute, is_floating, judged_of, to_device
from fxprune.calibrate.images import Batch, Calibration
from fxprune.calibrate.joined import joined
from fxprune.calibrate.sensitivity import element_weights
from fxprune.calls import device_of
from fxprune.closed_form.moments import widened
from fxprune.coupling.kept import Kept

Tensors = dict[str, Tensor]
LAST = torch.channels_last
SENSED = 128  # images that say how much the outputs feel a change inside


class Lesson:
    """Steps of a few batches, and how far a student is from what its teacher makes of them.

    The loss is the squared error relative to the variance: of the outputs, plus `inside` times the mean over those
    of blocks (nodes that everything flows through), all at the channels that stay. Between blocks an element counts as
    much as the outputs feel it: tokens that nobody reads any more do not.

    student: the graph whose weights are to be found. teacher: the dense graph, with the same node names.
    kept: what stays; a student that has not been shrunk yet is judged at those channels alone.
    augment: mirror, shift and mix the training images; then the teacher looks at each image anew.
    memory: bytes of the teacher's values to keep where it need not.
    """

    def __init__(
        self,
        student: fx.GraphModule,
        teacher: fx.GraphModule,
        kept: Kept,
        calibration: Calibration,
        *,
        inside: float,
        batch_size: int,
        augment: bool,
        memory: int,
    ) -> None:
        self._teacher, self._student, self._kept = Evaluator(joined(teacher)), Evaluator(joined(student)), kept
        self._constants = {network: _constants(network.gm) for network in (self._teacher, self._student)}
        self._outputs, self._inside = judged_of(student), inside
        self._cuts = block_outputs(student)
        small = calibration.finer(batch_size)
        self._images = small  # read anew each time: all of them at once may not fit the memory
        self._held_out = small.judging
        self.training = range(0, len(small.fitting), max(1, round(batch_size / max(small.sizes))))
        self.images_a_step = self.training.step * max(small.sizes)  # at most
        first = small.batches[0]
        self._meets_infinity = False
        self._augment = augment and any(is_image(tensor) for tensor in first)
        self._channels_last = self._runs_in_channels_last()
        self._known: dict[int, Tensors] = {}
        self._cutters: dict[str, Callable[[Tensor], Tensor]] = {}
        self._room = memory
        targets = self._targets(first)
        masks, felt = self._masks(targets), self._sensitivities()
        self._staying = {name: mask.mean() for name, mask in masks.items()}
        self._weights = {**felt, **{name: felt[name] * mask if name in felt else mask for name, mask in masks.items()}}
        self._cut_weights = {name: self._cut(name, weight) for name, weight in felt.items()}
        self._variance = self._variances({**targets, **self._numbers(targets, len(first[0]))})
        self._reads = {node.name: str(node.target) for node in student.graph.nodes if node.op == "get_attr"}

    def losses(self, first: int, weights: Mapping[str, Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        """The loss of the step that begins at batch `first` when the parameters named in `weights` are these, in terms.

        Each term is of as many images as fit a pass: take its gradient before the next is computed.
        """
        together = range(first, min(first + self.training.step, self._held_out.start))
        for index in together:
            batch = self._images.batches[index]
            if self._augment:
                there = tuple(to_device(self._student.gm, batch).values())  # an accelerator is quicker at this, too
                batch = augmented(there, generator)
                targets = self._targets(batch)
            else:
                targets = self._remembered(index, batch)
            yield self._loss(batch, targets, weights) / len(together)

    def judge(self, weights: Mapping[str, Tensor], images: float = math.inf) -> float:
        """The mean loss over the held-out batches, or the first that hold so many images; infinite where it is not
        finite."""
        losses = []
        with torch.no_grad():
            for index in self._images.first(self._held_out, images):
                batch = self._images.batches[index]
                losses.append(float(self._loss(batch, self._remembered(index, batch), weights)))
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    def _loss(self, batch: Batch, targets: Tensors, weights: Mapping[str, Tensor]) -> Tensor:
        given = self._inputs(self._student, batch)
        stand_ins = {name: weights[read].to(given[name].dtype) for name, read in self._reads.items() if read in weights}
        values = self._student(targets, {**given, **stand_ins})
        loss = self._total(values, targets)
        if not self._meets_infinity and not loss.isfinite() and not _finite(targets):  # masked logits, which are rare
            self._meets_infinity = True
            loss = self._total(values, targets)
        return loss

    def _total(self, values: Values, targets: Tensors) -> Tensor:
        errors = {name: self._error(name, values[name], targets[name]) for name in self._variance}
        outputs = [errors[name] for name in self._outputs if name in errors]
        loss: Tensor = _mean(outputs) + self._inside * _mean([errors[name] for name in self._cuts if name in errors])
        return loss

    def _error(self, name: str, value: Tensor, target: Tensor) -> Tensor:
        """The mean squared error at the channels that stay, zero where the target is not finite, relative to the
        variance; each element counts as much as the outputs feel it."""
        value, weight, staying = widened(value), self._weights.get(name), self._staying.get(name, 1.0)
        if value.shape != target.shape:  # the student has been shrunk
            target, weight, staying = self._cut(name, target), self._cut_weights.get(name), 1.0
        if self._meets_infinity:
            finite = target.isfinite()
            value, target = torch.where(finite, value, 0.0), torch.where(finite, target, 0.0)
        return mean_squared(value, target, weight) / staying / self._variance[name]

    def _variances(self, targets: Tensors) -> Tensors:
        """Of the values that vary, at the channels that stay, each element weighted as in the error."""
        found = {}
        for name, target in targets.items():
            value, weight = torch.nan_to_num(self._cut(name, target), 0.0, 0.0, 0.0), self._cut_weights.get(name)
            value = value if weight is None else value * weight
            if value.numel() > 1:
                found[name] = value.var()
        return {name: variance.clamp_min(1e-12) for name, variance in found.items() if float(variance) > 0}

    def _numbers(self, targets: Tensors, images: int) -> Tensors:
        """Values of one number an image, of many images: they vary between images alone."""
        lone = {name for name, target in targets.items() if target.numel() <= images}
        seen = self._images.batches_of(self._images.first(self._images.fitting, SENSED)) if lone else ()
        found = [self._targets(batch) for batch in seen]
        return {name: torch.cat([values[name].reshape(-1, 1) for values in found]) for name in lone}

    def _sensitivities(self) -> Tensors:
        """What each element of the values between blocks counts; none for those that the outputs do not feel."""
        names = [name for name in self._cuts if name not in self._outputs and is_floating(self._teacher.nodes[name])]
        seen = self._images.batches_of(self._images.first(self._images.fitting, SENSED))
        found = element_weights(self._teacher, names, (self._inputs(self._teacher, batch) for batch in seen))
        if not self._channels_last:
            return found
        return {name: w.contiguous(memory_format=LAST) if w.ndim == 4 else w for name, w in found.items()}

    def _masks(self, targets: Tensors) -> Tensors:
        """1 at the elements that stay, 0 at those that leave, of the values from which any leave."""
        fields = self._kept.coupling.fields
        stays = {name: self._kept.stays(fields.get(name, ()), target.ndim) for name, target in targets.items()}
        return {name: mask.to(targets[name]) for name, mask in stays.items() if not bool(mask.all())}

    @property
    def says_nothing(self) -> bool:
        """Whether there is no value to learn from: all are whole numbers, or constant."""
        return not self._variance

    def _cut(self, name: str, value: Tensor) -> Tensor:
        if name not in self._cutters:
            fields = self._kept.coupling.fields.get(name, ())
            self._cutters[name] = self._kept.cutter(fields, value.device)
        return self._cutters[name](value)

    def _remembered(self, index: int, batch: Batch) -> Tensors:
        """As `_targets`, kept for the next time as long as there is room."""
        if index not in self._known:
            targets = self._targets(batch)
            self._room -= sum(target.numel() * target.element_size() for target in targets.values())
            if self._room <= 0:
                return targets
            self._known[index] = targets
        return self._known[index]

    def _inputs(self, network: Evaluator, batch: Batch) -> Values:
        """A batch and the parameters, as values of the nodes that read them."""
        values = to_device(network.gm, batch)
        if self._channels_last:
            values = {name: v.contiguous(memory_format=LAST) if is_image(v) else v for name, v in values.items()}
        return {**self._constants[network], **values}

    def _runs_in_channels_last(self) -> bool:
        """Whether both networks take images in that layout, in which a CPU trains convolutions in about half the time.

        A view in a graph may ask for the layout in which it was traced.
        """
        self._channels_last = True
        batch = self._images.batches[self._held_out[0]]
        try:
            with torch.no_grad():
                for network in (self._teacher, self._student):
                    if device_of(network.gm).type != "cpu" or not any(map(is_image, batch)):
                        return False
                    network(self._outputs, self._inputs(network, batch))
        except RuntimeError:
            return False
        return True

    def _targets(self, batch: Batch) -> Tensors:
        """The teacher's floating-point values at outputs and between blocks."""
        with torch.no_grad():
            values = self._teacher(dict.fromkeys([*self._outputs, *self._cuts]), self._inputs(self._teacher, batch))
        return {name: widened(v) for name, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}


def mean_squared(value: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared difference; with a weight, which takes no gradient, that of the products."""
    error: Tensor = _MeanSquare.apply(value, target, weight)
    return error


class _MeanSquare(torch.autograd.Function):
    """One pass over both for the difference, which is kept, and one over it: `mse_loss` takes twice that, and gives
    gradients in a layout of its own, which slows the whole backward pass down."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        difference = value - target
        if weight is not None:
            difference.mul_(weight)
        ctx.save_for_backward(difference, weight)
        last = difference.ndim == 4 and difference.is_contiguous(memory_format=LAST)
        row = (difference.permute(0, 2, 3, 1) if last else difference).reshape(-1)  # as it lies in memory: no copy
        return torch.dot(row, row) / row.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        difference, weight = ctx.saved_tensors
        slope = difference * (gradient * (2 / difference.numel()))
        return slope if weight is None else slope.mul_(weight), None, None


def _constants(gm: fx.GraphModule) -> Values:
    """The tensors that a graph reads, looked up once."""
    return {node.name: attribute(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"}


def _finite(values: Tensors) -> bool:
    return all(bool(value.isfinite().all()) for value in values.values())


def _mean(losses: list[Any]) -> Any:
    return sum(losses) / len(losses) if losses else 0.0
