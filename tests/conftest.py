"""What all tests share: a fixed seed, and where the real data is, if anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of trained networks and images that others made; a test that needs it is skipped without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FXPRUNE_DATA", beside))
    if not (folder / "load.py").is_file():
        pytest.skip("needs the trained networks: set FXPRUNE_DATA to their folder")
    return folder
