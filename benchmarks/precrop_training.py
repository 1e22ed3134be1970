"""The recipe that every network gets, dense or cropped, and how well it then does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.accuracy_data import CIFAR, SETTINGS, batches
from benchmarks.accuracy_retrain import train

PREPROCESSING = "cifar10_resnet20"  # whose mean and standard deviation the images are normalised by
Labelled = tuple[Tensor, Tensor]  # images [count, 3, 32, 32], labels [count]


class Float32(nn.Module):
    """A layer in float32 within a network in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of it."""
        with torch.autocast(x.device.type, enabled=False):
            found: Tensor = self.layer(x.float())
        return found


class MixedPrecision(nn.Module):
    """A network in bfloat16 and channels last, with weights and logits in float32: twice as fast on one core.

    Depthwise convolutions become Float32, in place: their gradients in bfloat16 are slow on a CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                model.set_submodule(name, Float32(layer))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: [batch, classes]."""
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def training_images(limit: int | None = None) -> Labelled:
    """The labelled images to train with, or the first `limit` of them."""
    return _images(CIFAR, limit)


def fit(model: nn.Module, data: Labelled, epochs: int, seed: int, rate: float) -> None:
    """Train in place: SGD with momentum, an epoch of warm-up, a cosine, flips and crops; in evaluation mode after."""
    train(MixedPrecision(model), *data, epochs, seed, rate)


@torch.inference_mode()
def top1(model: nn.Module, limit: int | None = None) -> float:
    """The share of the test images that a network in evaluation mode classifies rightly, in percent; in float32."""
    device = next(model.parameters()).device
    images, labels = _images(SETTINGS[PREPROCESSING].test, limit)
    found = [model(part.to(device)).argmax(1).cpu() for part in images.split(250)]
    return 100 * float((torch.cat(found) == labels).double().mean())


def _images(dataset: str, limit: int | None) -> Labelled:
    images, labels = zip(*batches(PREPROCESSING, dataset, limit), strict=True)
    return torch.cat(images), torch.cat(labels).long()
