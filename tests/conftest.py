"""What all tests share: a fixed seed, and where the real data is, if anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.latency import clock

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


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are counted, not measured: those of a machine to which sizes are all multiples of 32."""

    def counted(call: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
        shapes = [value.shape for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
        return 1e-6 + 1e-9 * sum(torch.Size(-(-size // 32) * 32 for size in shape).numel() for shape in shapes)

    monkeypatch.setattr(clock, "least_seconds", counted)
