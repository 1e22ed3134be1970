"""What the rows of the accuracy table are, and what they hand over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.accuracy_data import Setting

Made = tuple[nn.Module, dict[str, Any]]  # a smaller network, and what is worth noting of how it was made


@dataclass(frozen=True)
class Task:
    """What a row is given.

    model: the trained network, which may be modified. images: unlabelled, for calibration.
    share: of the FLOPs, to keep. epochs: of retraining.
    """

    network: str
    model: nn.Module
    images: Tensor
    share: float
    seed: int
    epochs: int = 20


Make = Callable[[Task], Made]


@dataclass(frozen=True)
class Row:
    """A way to make a network smaller.

    part: by which rows are chosen on the command line.
    drawn: whether the calibration images or the seed matter, so that several draws are worth their time.
    needs_labels: whether it trains with labels, and can be run only where there are labelled images enough.
    """

    title: str
    part: str
    drawn: bool = True
    needs_labels: bool = False

    def possible(self, setting: Setting) -> bool:
        """Whether the network of this setting has what the row needs."""
        return setting.labelled or not self.needs_labels


ROWS = {
    "dense": Row("dense", "dense", drawn=False),
    "tp-l1": Row("Torch-Pruning, L1", "peers", drawn=False),
    "tp-l1-bn": Row("Torch-Pruning, L1 + BatchNorm", "peers"),
    "tp-best": Row("Torch-Pruning, best criterion", "peers"),
    "tp-best-bn": Row("Torch-Pruning, best criterion + BatchNorm", "peers"),
    "folding": Row("folding + BatchNorm", "peers"),
    "retrained": Row("Torch-Pruning, L1 + retraining with labels", "retrain", needs_labels=True),
    "datafree": Row("fxprune `datafree` (no images)", "ours", drawn=False),
    "least-squares": Row("fxprune, least squares alone", "ours"),
    "fast": Row("fxprune `fast`", "ours"),
    "psp": Row("fxprune `psp`", "ours"),
    "best": Row("fxprune `best`", "ours"),
}
PARTS = ("ours", "peers", "retrain")
KEY = ("network", "row", "share", "seed")  # what a result is known by
