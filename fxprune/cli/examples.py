"""Example inputs: what a network is traced with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fxprune.cli.console import note
from fxprune.cli.models import Network
from fxprune.errors import CalibrationError
from fxprune.types import Plan

SAMPLES = 2  # one would be taken for a fixed batch size
USUAL = (3, 224, 224)  # of one input, where nobody says


def noise(network: Network, input_size: tuple[int, ...] | None) -> tuple[Tensor, ...] | None:
    """Noise of the shape of two inputs; None for an exported program, which brings its own."""
    if isinstance(network.model, ExportedProgram):
        return None
    size = input_size or network.input_size
    if size is None:
        size = USUAL
        note(f"inputs are taken to be {','.join(map(str, USUAL))}: give --input-size where they are not")
    return (torch.randn(SAMPLES, *size),)


def first_of(calibration: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    """Positional and keyword inputs of the first two samples: of a tensor, of a tuple's first item, or of a dict.

    Raises CalibrationError where there is no batch.
    """
    for batch in calibration:
        if isinstance(batch, Mapping):
            return (), {name: _start(value) for name, value in batch.items()}
        return (_start(batch[0] if isinstance(batch, tuple | list) else batch),), None
    raise CalibrationError("the calibration data is empty")


def of_plan(plan: Plan) -> tuple[Tensor, ...] | None:
    """Noise of the shapes and dtypes that `plan` was found with (zeros for whole numbers); None where it has none."""
    dtypes = [getattr(torch, name.removeprefix("torch.")) for _, name in plan.inputs]
    return (
        tuple(
            torch.randn(shape, dtype=dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
            for (shape, _), dtype in zip(plan.inputs, dtypes, strict=True)
        )
        or None
    )


def _start(value: Any) -> Any:
    return value[:SAMPLES] if isinstance(value, Tensor) and value.ndim else value
