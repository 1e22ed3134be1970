"""Random numbers that are the same in every run, and leave the user's own as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same random numbers in every run inside; those of the caller go on as if none had been drawn.

    CUDA's are touched where it is in use: `torch.manual_seed` alone would leave all its devices seeded.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
