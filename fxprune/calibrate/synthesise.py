"""Calibration inputs made from the network alone, for users without any image.

The running statistics of a BatchNorm are what a network remembers of its training images. Inputs whose activations have
these statistics at every BatchNorm stand in for them: ZeroQ (Cai et al., CVPR 2020), DeepInversion (Yin et al., CVPR
2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calibrate.evaluate import Evaluator
from fxprune.calibrate.images import sampled_inputs
from fxprune.calibrate.noise import Ids, Noise, Source, rows_of, source_for
from fxprune.calibrate.room import images_at_once
from fxprune.calibrate.statistics import Norm, mean_mismatch, norms_of
from fxprune.calls import device_of
from fxprune.capture import capture_info
from fxprune.errors import CalibrationError, describe
from fxprune.progress import Counted

RATE = 0.2  # of Adam, on coefficients of unit variance
FIT_STEPS, FIT_RATE = 100, 0.1  # of the noise, which only runs the network up to its first BatchNorms
SCALES = tuple(2.0**exponent for exponent in range(-8, 13))  # of inputs: they may lie within 1/255 or go beyond 255
LOSS_SCALE = 2.0**12  # keeps gradients in half precision from vanishing; Adam does not see it
SMALLEST_BATCH = 8  # fewer images have no statistics to speak of


def synthesised(
    gm: fx.GraphModule,
    images: int = 512,
    *,
    seed: int = 0,
    steps: int = 20,
    batch_size: int = 64,
    memory: int = 4 << 30,
    progress: Counted | None = None,
) -> tuple[Tensor, ...]:
    """Inputs for a captured graph from its weights and BatchNorm statistics: a tensor for each placeholder, on the CPU.

    Each batch starts as noise with the spectrum of natural images, mixed and shifted so that the first BatchNorms see
    the means and variances that they have stored; then Adam changes its Fourier coefficients until all BatchNorms do.
    A network without BatchNorm in evaluation gets the noise with the channel means and deviations of the example
    inputs, which knows far less of what the network was trained on. Inputs that are not floating-point are only drawn:
    ids for an embedding among its rows, anything else from the example.

    images: how many; rounded up to whole batches where the graph is fixed to a batch size.
    steps: of Adam for each batch, a forward and a backward pass each.
    batch_size: images whose statistics are taken together; fewer where their activations would exceed `memory` bytes.
    progress: called with (steps done, steps).

    Parameters and buffers are only read. The same seed gives the same inputs.
    Raises CalibrationError where `images` is not positive, an input of the graph has no samples, or the ids that a
    network computes from what is drawn lie outside an embedding.
    """
    if images < 1:
        raise CalibrationError(f"images must be at least 1, not {images}")
    generator = torch.Generator().manual_seed(seed)
    sources = _sources(gm)
    norms = norms_of(gm)
    sizes = _batch_sizes(gm, images, batch_size, memory)
    if norms:
        _fit(_Mismatch(gm, sources, [norm for norm in norms if norm.first]), sizes[0], generator)
    mismatch = _Mismatch(gm, sources, norms)
    made = []
    for number, size in enumerate(sizes):
        drawn = mismatch.draw(size, generator)
        leaves = [drawn[name].requires_grad_() for name in mismatch.noises]
        for done in _descend(partial(mismatch, drawn), leaves, steps, RATE):
            if progress is not None:
                progress(number * steps + done, len(sizes) * steps)
        made.append([source.value(drawn[name]).detach().cpu() for name, source in sources.items()])
    return tuple(torch.cat(column) for column in zip(*made, strict=True))


class _Mismatch:
    """How far the inputs that `sources` make are from what the BatchNorms expect: a loss of order one."""

    def __init__(self, gm: fx.GraphModule, sources: Mapping[str, Source], norms: Sequence[Norm]) -> None:
        self.sources, self._norms, self._evaluator = sources, norms, Evaluator(gm)
        self.noises = {name: source for name, source in sources.items() if isinstance(source, Noise)}

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Coefficients for `count` images."""
        drawn = {name: source.draw(count, generator) for name, source in self.sources.items()}
        for name, source in self.sources.items():
            if isinstance(source, Ids):
                self._check_rows(name, source, drawn[name])
        return drawn

    def __call__(self, coefficients: Mapping[str, Tensor]) -> Tensor:
        """The loss, averaged over the BatchNorms; zero where there is none."""
        inputs = {name: source.value(coefficients[name]) for name, source in self.sources.items()}
        return mean_mismatch(self._norms, self._evaluator, inputs)

    def _check_rows(self, name: str, source: Ids, ids: Tensor) -> None:
        """Raise CalibrationError where an embedding has no row for what the graph makes of the ids."""
        for reader in source.readers:
            (index,) = self._evaluator([str(reader.args[1])], {name: ids}).values()
            if bool(((index < 0) | (index >= rows_of(reader))).any()):
                raise CalibrationError(
                    f"ids for input `{name}` cannot be made up: of those below {source.limit} some lead to rows that "
                    f"{describe(reader)} has not; give real ones as calibration="
                )


def _fit(mismatch: _Mismatch, count: int, generator: torch.Generator) -> None:
    """Fit scale, mixture and shift of the noise: first the scale, among powers of two, then all by Adam."""
    drawn = mismatch.draw(count, generator)
    losses = {}
    for scale in SCALES:
        for noise in mismatch.noises.values():
            noise.reset(scale)
        with torch.no_grad():
            loss = float(mismatch(drawn))
        losses[scale] = loss if math.isfinite(loss) else math.inf
    for noise in mismatch.noises.values():
        noise.reset(min(losses, key=losses.__getitem__))
    parameters = [tensor for noise in mismatch.noises.values() for tensor in noise.parameters]
    for tensor in parameters:
        tensor.requires_grad_()
    for _ in _descend(partial(mismatch, drawn), parameters, FIT_STEPS, FIT_RATE):
        pass
    for tensor in parameters:
        tensor.requires_grad_(False)


def _descend(loss: Callable[[], Tensor], leaves: Sequence[Tensor], steps: int, rate: float) -> Iterator[int]:
    """Adam with half a cosine; yields the number of steps done. Stops where the loss or its gradient is not finite, and
    where it does not depend on all `leaves`."""
    if not leaves:
        return
    optimizer = torch.optim.Adam(leaves, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            value = LOSS_SCALE * loss()
        gradients = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else ()
        if not gradients or not all(g is None or bool(g.isfinite().all()) for g in gradients):
            return
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        yield step + 1


def _sources(gm: fx.GraphModule) -> dict[str, Source]:
    """What makes the values of each placeholder, where the parameters are."""
    info, nodes = capture_info(gm), sampled_inputs(gm)
    device = device_of(gm)
    examples = pytree.tree_leaves((info.args, dict(info.kwargs)))
    return {node.name: source_for(node, value.detach().to(device)) for node, value in zip(nodes, examples, strict=True)}


def _batch_sizes(gm: fx.GraphModule, images: int, batch_size: int, memory: int) -> list[int]:
    """How many images each batch has: about equally many, or as many as the graph is fixed to."""
    leading = [node.meta["val"].shape[0] for node in gm.graph.nodes if node.op == "placeholder"]
    fixed = next((size for size in leading if isinstance(size, int)), None)
    room = max(SMALLEST_BATCH, images_at_once(gm, memory))
    count = math.ceil(images / (fixed or min(batch_size, room)))
    return [fixed] * count if fixed else [images // count + (index < images % count) for index in range(count)]
