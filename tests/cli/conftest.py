"""A user's own file with tiny networks, and images, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NETWORKS = """
import os
import signal

import torch
from torch import nn

from .layers import block
import settings


class Tiny(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.features = nn.Sequential(*block(settings.CHANNELS, width), *block(width, width))
        self.classifier = nn.Linear(width, 4)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def tiny():
    torch.manual_seed(0)
    return Tiny()


def wide():
    return Tiny(64)


def broken():
    raise RuntimeError("out of order")


def number():
    return 3


def tensor():
    return torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def generator():
    yield from tensor().split(5)


def batches():
    return torch.randn(512, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pairs():
    return [(batch, torch.zeros(5)) for batch in tensor().split(5)]


def dicts():
    return [{"x": batch} for batch in tensor().split(5)]


def nothing():
    return []


def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in its background ignores it
    for number, batch in enumerate(tensor().split(5)):
        if number:  # the first batch gives the example input
            os.kill(os.getpid(), signal.SIGINT)
        yield batch


def spoilt():
    return [torch.full((5, 3, 8, 8), float("nan"))]


ready = tiny()
"""

LAYERS = """
from torch import nn


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
"""


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A file of factories, whose neighbours it imports both relatively and plainly."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "layers.py").write_text(LAYERS)
    (folder / "settings.py").write_text("CHANNELS = 3\n")
    (folder / "networks.py").write_text(NETWORKS)
    return folder / "networks.py"


@pytest.fixture
def transformer(tmp_path: Path) -> str:
    """The SPEC of a vision transformer of one layer and four heads, for images of 16 pixels."""
    source = tmp_path / "nets.py"
    source.write_text(
        "from torch import nn\n"
        "def vit():\n"
        "    from torchvision.models import VisionTransformer\n"
        "    return VisionTransformer(16, 8, 1, 4, 16, 32, num_classes=3)\n"
    )
    return f"{source}:vit"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of six 12 x 10 images in two subfolders, beside a file that is no image."""
    folder = tmp_path / "pictures"
    random = np.random.default_rng(0)
    for number in range(6):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    (folder / "labels.csv").write_text("file,label\n")
    return folder
