"""Trained networks, their images, and how well a smaller network does on them.

Both lie in the folder FXPRUNE_DATA (docs/benchmarks.md says what is there): trained and labelled by others. Test images
choose nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FXPRUNE_DATA", ROOT.parent / "shared" / "data"))
CIFAR, SAMPLE = "cifar10_train15k.npz", "imagenet_sample1000.zip"


@dataclass(frozen=True)
class Setting:
    """How a network is calibrated and tested.

    images: the calibration images, `total` of them, of which a draw has `count`.
    shares: of the FLOPs, to keep.
    """

    title: str
    images: str
    total: int
    count: int
    test: str
    shares: tuple[float, ...]

    @property
    def labelled(self) -> bool:
        """Whether there are enough labelled images to train with."""
        return self.images == CIFAR


def _cifar(title: str, *shares: float) -> Setting:
    return Setting(f"{title}, CIFAR-10", CIFAR, 15000, 1024, "cifar10_test.npz", shares)


def _imagenet(title: str, count: int, *shares: float) -> Setting:
    return Setting(f"{title}, ImageNet", SAMPLE, 1000, count, "imagenet_val_a.zip", shares)


NETWORKS = {
    "cifar10_resnet20": _cifar("ResNet-20", 0.58, 0.5, 0.4),
    "cifar10_resnet56": _cifar("ResNet-56", 0.58, 0.5, 0.4),
    "cifar10_wrn16_2": _cifar("WRN-16-2", 0.58, 0.5, 0.4),
    "imagenet_mobilenet_v2": _imagenet("MobileNetV2", 1000, 0.8, 0.7),
    "imagenet_squeezenet1_0": _imagenet("SqueezeNet 1.0", 1000, 0.8, 0.7),
}
SMALL = {
    "cifar10_resnet8_mlperf": _cifar("ResNet-8", 0.5),
    "imagenet_mobilenet_v1_025": _imagenet("MobileNetV1 x0.25", 333, 0.5),
}
SETTINGS = NETWORKS | SMALL


def library() -> Any:
    """The module `load` of the data folder. Exits with one line where there is none."""
    if not (DATA / "load.py").is_file():
        raise SystemExit(f"no load.py in {DATA}: set FXPRUNE_DATA to the folder of trained networks")
    if str(DATA) not in sys.path:
        sys.path.insert(0, str(DATA))
    return importlib.import_module("load")


def build(network: str) -> nn.Module:
    """The trained network, in evaluation mode. Exits with one line where its weights are missing."""
    try:
        model: nn.Module = library().build(network)
    except FileNotFoundError as error:
        raise SystemExit(f"the weights of {network} are missing: {error.filename}") from error
    return model


def batches(network: str, dataset: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Preprocessed images with their labels. Exits with one line where the file is missing."""
    if not (DATA / dataset).is_file():
        raise SystemExit(f"the images are missing: {DATA / dataset}")
    yield from library().batches(network, dataset, limit=limit)


def calibration(network: str, seed: int) -> Tensor:
    """The calibration images of draw `seed`: [images, 3, height, width].

    Draws are disjoint where there are images enough. The CIFAR-10 images are shuffled, so a draw is a run of them; the
    ImageNet images are sorted by class, so a draw is every n-th of them.
    """
    setting = SETTINGS[network]
    draws = setting.total // setting.count
    draw = seed % draws
    if setting.images == CIFAR:
        found = torch.cat([x for x, _ in batches(network, CIFAR, (draw + 1) * setting.count)])
        return found[draw * setting.count :].clone()
    return torch.cat([x for x, _ in batches(network, setting.images)])[draw::draws][: setting.count].clone()


@torch.inference_mode()
def judge(model: nn.Module, dense: nn.Module, network: str, limit: int | None = None) -> dict[str, float]:
    """How a network does on the test images, beside the dense one.

    top1, agreement: the share of the images that it classifies rightly, and as the dense network does; in percent.
    kl: the mean Kullback-Leibler divergence of its answers from those of the dense network, in nats.
    """
    device = next(dense.parameters()).device
    hits = same = total = 0
    divergence = 0.0
    for x, y in batches(network, SETTINGS[network].test, limit):
        found, wanted = model(x.to(device)).float().cpu(), dense(x.to(device)).float().cpu()
        hits += int((found.argmax(1) == y).sum())
        same += int((found.argmax(1) == wanted.argmax(1)).sum())
        divergence += float(kl(found, wanted).sum())
        total += len(y)
    return {"top1": 100 * hits / total, "agreement": 100 * same / total, "kl": divergence / total}


def kl(logits: Tensor, dense: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of an answer from the dense network's, for each image, in nats."""
    return F.kl_div(logits.log_softmax(1), dense.log_softmax(1), reduction="none", log_target=True).sum(1)


@torch.inference_mode()
def flops(model: nn.Module, example: Tensor) -> int:
    """FLOPs for one image, as torch.utils.flop_counter counts them."""
    with FlopCounterMode(display=False) as counter:
        model(example[:1].to(next(model.parameters()).device))
    return int(counter.get_total_flops())


def chunks(images: Tensor, model: nn.Module, size: int = 64) -> Iterator[Tensor]:
    """The images in batches, where the parameters of `model` are."""
    device = next(model.parameters()).device
    yield from (batch.to(device) for batch in images.split(size))
