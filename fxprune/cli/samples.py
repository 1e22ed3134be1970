"""Samples that are decoded when they are asked for, and batches of them that can be walked as often as needed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fxprune.cli.preprocessing import Preprocessing
from fxprune.errors import CalibrationError


class Samples(Protocol):
    """Inputs by number."""

    @property
    def preprocessed(self) -> bool:
        """Whether they are images that pass through a Preprocessing."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Tensor:
        """The inputs `start` to `stop - 1` as one tensor."""


@dataclass(frozen=True)
class Images:
    """Image files, decoded when asked for.

    names: what messages call them.
    read: the bytes of the file of a name.
    mode: Pillow's name of the colours: "RGB" or "L".
    """

    names: Sequence[str]
    read: Callable[[str], bytes]
    preprocessing: Preprocessing
    mode: str = "RGB"
    preprocessed: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, start: int, stop: int) -> Tensor:
        """float32 (stop - start, C, H, W). Raises CalibrationError naming a file that cannot be decoded."""
        images = [self._decode(name) for name in self.names[start:stop]]
        for name, image in zip(self.names[start:stop], images, strict=True):
            if image.shape != images[0].shape:
                raise CalibrationError(
                    f"{name} is {tuple(image.shape[1:])} and {self.names[start]} {tuple(images[0].shape[1:])} pixels: "
                    "give --size to bring all images to one size"
                )
        return self.preprocessing.normalize(torch.stack(images))

    def _decode(self, name: str) -> Tensor:
        try:
            with Image.open(io.BytesIO(self.read(name))) as image:
                decoded = image.convert(self.mode)
        except (OSError, SyntaxError, ValueError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{name} cannot be decoded as an image: {error}") from error
        return self.preprocessing.image(decoded)


@dataclass(frozen=True)
class Array:
    """Inputs along the first axis of an array: uint8 ones are images to preprocess, others are taken as they are."""

    values: Tensor | np.ndarray[Any, Any]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.values)

    @property
    def preprocessed(self) -> bool:
        """Whether the values are pixels."""
        return self.values.dtype in (torch.uint8, np.uint8)

    def batch(self, start: int, stop: int) -> Tensor:
        """The rows `start` to `stop - 1`."""
        rows = self.values[start:stop]
        tensor = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        if self.preprocessed:
            if tensor.ndim != 4:
                raise CalibrationError(
                    f"uint8 images need four axes (N, H, W, C), not the shape {tuple(self.values.shape)}"
                )
            return self.preprocessing.normalize(self.preprocessing.array(tensor))
        return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Batches(Sequence[Tensor]):
    """The first `total` samples in batches of `batch_size`; the last may be smaller."""

    samples: Samples
    batch_size: int
    total: int

    def __len__(self) -> int:
        return -(-self.total // self.batch_size)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        start = range(len(self))[index] * self.batch_size
        return self.samples.batch(start, min(start + self.batch_size, self.total))
