"""From images to the inputs of a network: resize, crop, scale, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import functional as vision
from torchvision.transforms.functional import InterpolationMode

from fxprune.errors import CalibrationError


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the network sees it.

    mean, std: of each channel, for values in [0, 1]; one number serves all channels. None leaves [0, 1] as it is.
    size: height and width of the centre crop; None takes images as large as they are.
    resize: what the shorter side is resized to before the crop, or both sides where it is a pair; None means `size`.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def override(
        self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, size: int | None, resize: int | None
    ) -> Preprocessing:
        """The same with what is not None in its place. A new `size` scales `resize` along, unless that is given too."""
        scaled = self.resize
        if size is not None and self.size is not None and isinstance(scaled, int):
            scaled = round(scaled * size / min(self.size))
        elif size is not None:
            scaled = size
        return replace(
            self,
            mean=self.mean if mean is None else mean,
            std=self.std if std is None else std,
            size=self.size if size is None else (size, size),
            resize=scaled if resize is None else resize,
        )

    def image(self, image: Image) -> Tensor:
        """A decoded image, resized and cropped, as uint8 (C, H, W)."""
        resize = self.resize if self.resize is not None else self.size and min(self.size)
        if resize is not None:
            image = vision.resize(image, resize, self.interpolation)
        if self.size is not None:
            image = vision.center_crop(image, list(self.size))
        pixels: Tensor = vision.pil_to_tensor(image)
        return pixels

    def array(self, images: Tensor) -> Tensor:
        """uint8 (N, H, W, C) or (N, C, H, W), resized where `size` says another size, as uint8 (N, C, H, W)."""
        if images.shape[3] in (1, 3):
            images = images.permute(0, 3, 1, 2)
        elif images.shape[1] not in (1, 3):
            raise CalibrationError(
                f"a uint8 array of shape {tuple(images.shape)} is no set of images: (N, H, W, 3 or 1) is needed"
            )
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True).round().to(torch.uint8)
        return images.contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) as float32: scaled to [0, 1], minus the mean, by the standard deviation."""
        for name, values in (("--mean", self.mean), ("--std", self.std)):
            if values is not None and len(values) not in (1, images.shape[1]):
                raise CalibrationError(
                    f"{name} has {len(values)} values, but the images have {images.shape[1]} channels"
                )
        mean = torch.tensor(self.mean or (0.0,)).view(-1, 1, 1)
        std = torch.tensor(self.std or (1.0,)).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)


def of_torchvision(preset: Any) -> Preprocessing | None:
    """What a torchvision classification preset does; None for presets of other tasks."""
    if not hasattr(preset, "crop_size"):
        return None
    crop, resize = _pair(preset.crop_size), preset.resize_size
    return Preprocessing(tuple(preset.mean), tuple(preset.std), crop, resize[0], preset.interpolation)


def of_timm(config: dict[str, Any]) -> Preprocessing:
    """What timm's evaluation transform does under a resolved data config."""
    size = _pair(config["input_size"][1:])
    resize = tuple(int(side / config["crop_pct"]) for side in size)
    squash = config.get("crop_mode") == "squash" or size[0] != size[1]
    return Preprocessing(
        tuple(config["mean"]),
        tuple(config["std"]),
        size,
        (resize[0], resize[1]) if squash else resize[0],
        InterpolationMode(config["interpolation"]),
    )


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return sizes[0], sizes[-1]
