"""More images out of few: mirrored and shifted ones, for which the dense network says what is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 8  # images are shifted by up to an eighth of their size, as CIFAR's customary 4 of 32 pixels


def augmented(batch: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """The batch with each image mirrored or not, and shifted by some pixels; all images of one sample alike.

    Images are floating-point tensors [samples, channels, height, width]; everything else stays as it is.
    """
    count = len(batch[0])
    mirror = torch.rand(count, generator=generator) < 0.5
    shift = torch.rand(2, count, generator=generator)
    return tuple(_moved(tensor, mirror, shift) if is_image(tensor) else tensor for tensor in batch)


def is_image(tensor: Tensor) -> bool:
    """Whether mirroring and shifting make sense: rank 4, floating-point, and large enough."""
    return tensor.ndim == 4 and tensor.is_floating_point() and min(tensor.shape[2:]) >= SHIFT


def _moved(images: Tensor, mirror: Tensor, shift: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = height // SHIFT, width // SHIFT
    padded = F.pad(images, (columns, columns, rows, rows), mode="reflect")
    top, left = (shift * torch.tensor([[2 * rows + 1], [2 * columns + 1]])).long()
    parts = [
        padded[index, :, y : y + height, x : x + width]
        for index, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True))
    ]
    result = torch.stack(parts)
    return torch.where(mirror.view(-1, 1, 1, 1), result.flip(3), result)
