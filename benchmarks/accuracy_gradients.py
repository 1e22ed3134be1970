"""Gradients without labels, for the criteria of Torch-Pruning that ask for a loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy_data import chunks


@dataclass(frozen=True)
class Gradients:
    """For each parameter of a network, in its order.

    slopes: of the cross-entropy with the network's own answers as labels.
    squares: the mean square of single images' gradients with labels drawn from the network's answers, which is the
        diagonal of the Fisher matrix. (Torch-Pruning's own `accumulate_grad` keeps the last image's alone.)
    """

    slopes: tuple[Tensor, ...]
    squares: tuple[Tensor, ...]

    def attach(self, model: nn.Module, criterion: str) -> None:
        """Put what a criterion reads where it looks for it: "hessian" reads squares, others slopes."""
        chosen = self.squares if criterion == "hessian" else self.slopes
        for parameter, gradient in zip(model.parameters(), chosen, strict=True):
            parameter.grad = gradient.clone()


@torch.enable_grad()
def gradients(model: nn.Module, images: Tensor, seed: int) -> Gradients:
    """The gradients of a network on unlabelled images, one image at a time."""
    generator = torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    slopes, squares = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    for image in chunks(images, model, 1):
        logits = model(image)
        drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
        slope = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), parameters, retain_graph=True)
        curved = torch.autograd.grad(F.cross_entropy(logits, drawn), parameters)
        for index in range(len(parameters)):
            slopes[index] += slope[index] / len(images)
            squares[index] += curved[index].square() / len(images)
    return Gradients(tuple(slopes), tuple(squares))
