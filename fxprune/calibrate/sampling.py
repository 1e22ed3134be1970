"""How much of the calibration images is looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.written import written

FEWEST_ROWS = 4  # of an image
FEWEST_IMAGES = 16  # of a trial


@dataclass(frozen=True)
class Sampling:
    """How much the choice of units looks at.

    images: of which the moments are taken. gradient_images: those of them that take a backward pass as well.
    rows_per_image, rows_per_input: as in `enough_rows`.
    trial_images: on which a network with a trial cut is run; fewer where fewer are held out.
    trial_runs: as many runs of the network over all images as the trials may take together; where that allows fewer
        than `trial_images`, at least FEWEST_IMAGES of those that are held out.
    """

    images: float = math.inf
    gradient_images: int = 256
    rows_per_image: int = 32
    rows_per_input: float = math.inf
    trial_images: int = 128
    trial_runs: float = math.inf

    __repr__ = written

    def images_of_trials(self, runs: float, images: int) -> int:
        """How many of the images a trial is run on, where all trials together are `runs` runs of the network."""
        affordable = self.trial_runs * images / max(1e-9, runs)
        return min(images, max(FEWEST_IMAGES, int(min(self.trial_images, affordable))))


THOROUGH = Sampling()
THRIFTY = Sampling(images=256, gradient_images=128, rows_per_input=8, trial_runs=0.75)


def enough_rows(inputs: int, images: int, per_image: int, per_input: float) -> float:
    """How many positions of an image give `per_input` rows for each input over all images; at most `per_image`.

    At least FEWEST_ROWS: there are many images then, and more of one image say little that is new.
    """
    return min(per_image, max(FEWEST_ROWS, per_input * inputs / images))


def sample(total: int, rows: int, generator: torch.Generator) -> Tensor:
    """At most `rows` of `total` positions, each at most once, in order; where they are few of many, next to `rows`."""
    if rows >= total:
        return torch.arange(total)
    if 8 * rows < total:
        drawn: Tensor = torch.randint(total, (rows,), generator=generator).unique()
        return drawn
    return torch.randperm(total, generator=generator)[:rows].sort().values
