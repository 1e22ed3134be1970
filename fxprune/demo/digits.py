"""Handwritten digits of scikit-learn (1,797 real scans of 8 x 8 pixels), split once and for all."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.errors import SpecError

TRAINING = 1_000  # images for training and calibration; the other 797 are the test set


class Digits(NamedTuple):
    """Images float32 (N, 1, 16, 16) in [0, 1], labels int64 (N,)."""

    images: Tensor
    labels: Tensor


def load() -> tuple[Digits, Digits]:
    """The training and the test digits. Raises SpecError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpecError("the demo's digits come with scikit-learn: pip install 'fxprune[demo]'") from error
    data = load_digits()
    small = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING], order[TRAINING:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])
