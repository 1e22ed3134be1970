"""How much the outputs of a network feel a change of a value inside: a backward pass of a random projection of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.calibrate.evaluate import Evaluator, Values, centred, judged_of, rows_of
from fxprune.closed_form.moments import widened


def projected_gradients(
    evaluator: Evaluator,
    names: Sequence[str],
    inputs: Values,
    generator: torch.Generator,
    more: Iterable[str] = (),
    backward: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The values of `names` and `more`, and at those of `names` that the outputs feel the gradients of a random
    projection of the outputs: their expected square is the outputs' squared error over its variance.

    backward: whether there are any gradients; what the generator draws is the same without them.
    """
    outputs = judged_of(evaluator.gm)
    with torch.set_grad_enabled(backward):
        # adding a zero that requires a gradient gives one to every value, also to those behind whole numbers
        evaluator.offsets = {name: torch.zeros((), requires_grad=True) for name in names if backward}
        values = evaluator([*names, *more, *outputs], inputs)
        evaluator.offsets = {}
        projection = sum((_projection(values[name], generator) for name in outputs), torch.zeros(()))
        found: list[Tensor | None] = [None] * len(names)
        if projection.requires_grad:
            found = list(torch.autograd.grad(projection, [values[name] for name in names], allow_unused=True))
    gradients = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
    return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}, gradients


def element_weights(evaluator: Evaluator, names: Sequence[str], batches: Iterable[Values]) -> dict[str, Tensor]:
    """What an error of each element of the values `names` weighs; 1 sample wide.

    The root of the mean square, over the samples of each batch and over the batches, of the gradient there, relative to
    that of all elements. Values that the outputs do not feel have none.
    """
    generator = torch.Generator().manual_seed(0)
    totals: dict[str, Tensor] = {}
    for inputs in batches:
        for name, gradient in projected_gradients(evaluator, names, inputs, generator)[1].items():
            squares = torch.nan_to_num(widened(gradient), 0.0, 0.0, 0.0).square()
            total = squares.mean(_sample_axes(evaluator.nodes[name]), keepdim=True)
            totals[name] = totals.get(name, torch.zeros_like(total)) + total
    return {name: (total / total.mean()).sqrt() for name, total in totals.items() if float(total.mean()) > 0}


def _sample_axes(node: fx.Node) -> list[int]:
    """The axes along which the samples lie: those of no fixed size, or the first where all are fixed."""
    return [axis for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)] or [0]


def _projection(output: Any, generator: torch.Generator) -> Tensor:
    """A random signed sum of an output, scaled so that its expected square is the output's error over its variance, or
    over its square where nothing varies."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return torch.zeros(())
    output = widened(output)  # the squares of half precision overflow
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    spread, energy = (each.square().sum(1).mean() for each in (centred(output.detach()), rows_of(output.detach())))
    scale = torch.where(spread > 0, spread, energy).sqrt().clamp_min(1e-12)  # a lone number has no spread
    total: Tensor = (signs * output)[output.isfinite()].sum()
    return total / scale
