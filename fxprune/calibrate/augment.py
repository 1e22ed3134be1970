"""More images out of few: mirrored, shifted and mixed ones, for which the dense network says what is right.

Mixtures have no label, but a teacher has an answer to them all the same, and a student that agrees on them agrees on
the images between (Beyer et al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SHIFT = 8  # images are shifted by up to an eighth of their size, as CIFAR's customary 4 of 32 pixels


def augmented(batch: Sequence[Tensor], generator: Generator) -> tuple[Tensor, ...]:
    """The batch with each image mirrored or not, shifted by some pixels, then mixed with another one of the batch; all
    images of one sample alike.

    Images are floating-point tensors [samples, channels, height, width]; everything else stays as it is.
    """
    move, mixture = Move.drawn(len(batch[0]), generator), Mixture.drawn(len(batch[0]), generator)
    return tuple(mixture(move(tensor)) if is_image(tensor) else tensor for tensor in batch)


def is_image(tensor: Tensor) -> bool:
    """Whether mirroring and shifting make sense: rank 4, floating-point, and large enough."""
    return tensor.ndim == 4 and tensor.is_floating_point() and min(tensor.shape[2:]) >= SHIFT


@dataclass(frozen=True, eq=False)
class Move:
    """Which images are mirrored, and how far each is shifted down and to the right, as shares of the most."""

    mirrored: Tensor
    shift: Tensor

    @classmethod
    def drawn(cls, count: int, generator: Generator) -> Move:
        """Half of the images, and any distance."""
        return cls(torch.rand(count, generator=generator) < 0.5, torch.rand(2, count, generator=generator))

    def __call__(self, images: Tensor) -> Tensor:
        """The images, with their borders reflected where they are shifted away from."""
        height, width = images.shape[2:]
        rows, columns = height // SHIFT, width // SHIFT
        padded = F.pad(images, (columns, columns, rows, rows), mode="reflect")
        top, left = (self.shift * torch.tensor([[2 * rows + 1], [2 * columns + 1]])).long()
        parts = [
            padded[index, :, y : y + height, x : x + width]
            for index, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True))
        ]
        result = torch.stack(parts)
        return torch.where(_each(self.mirrored).to(images.device), result.flip(3), result)


@dataclass(frozen=True, eq=False)
class Mixture:
    """How much of itself each image keeps, and whose the rest is: blended in (mixup: Zhang et al., ICLR 2018) or in a
    rectangle of the image's proportions (CutMix: Yun et al., ICCV 2019).

    partner: the other image. share: what is kept, from 0 to 1. blended: or else a rectangle.
    centre: of the rectangle, from the top and from the left; what lies beyond the border is lost.
    """

    partner: Tensor
    share: Tensor
    blended: Tensor
    centre: Tensor

    @classmethod
    def drawn(cls, count: int, generator: Generator) -> Mixture:
        """Any share; half of the images are blended."""
        partner = torch.randperm(count, generator=generator)
        share, how, top, left = torch.rand(4, count, generator=generator)
        return cls(partner, share, how < 0.5, torch.stack([top, left]))

    def __call__(self, images: Tensor) -> Tensor:
        """The images, each with its part of another."""
        inside = [self._spans(axis, images.shape[2 + axis]) for axis in (0, 1)]
        outside = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
        kept = torch.where(_each(self.blended), _each(self.share), outside.float()).to(images)
        return kept * images + (1 - kept) * images[self.partner]

    def _spans(self, axis: int, size: int) -> Tensor:
        """Which of the `size` positions along an axis the rectangle of each image covers: [images, positions]."""
        positions = (torch.arange(size) + 0.5) / size
        half = (1 - self.share).sqrt() / 2
        return (positions - self.centre[axis][:, None]).abs() < half[:, None]


def _each(values: Tensor) -> Tensor:
    """One value for each image, in a shape that broadcasts over its pixels."""
    return values.view(-1, 1, 1, 1)
