"""Weights files: .safetensors, and what torch.save wrote, read without running code from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fxprune.errors import WeightsError

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the state_dict
SHOWN = 5  # how many keys of a kind a message names


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights in `path` into `model`. Nothing is changed where they do not match.

    Raises WeightsError that names missing and unexpected keys and differing shapes.
    """
    loaded = _state_dict(_read(path), path)
    expected = model.state_dict()
    # Checkpoints older than this counter lack it; it only matters to training with momentum=None.
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    complete = counters | loaded
    problems = [
        _listed("missing", [key for key in expected if key not in complete]),
        _listed("unexpected", [key for key in complete if key not in expected]),
        _listed(
            "of another shape",
            [
                f"{key} {tuple(complete[key].shape)} instead of {tuple(value.shape)}"
                for key, value in expected.items()
                if key in complete and complete[key].shape != value.shape
            ],
        ),
    ]
    if any(problems):
        raise WeightsError(f"{path} does not match {type(model).__name__}: {'; '.join(filter(None, problems))}")
    model.load_state_dict(complete)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path} cannot be read as plain weights: {type(error).__name__}: {reason}") from error


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict inside `data`, out of its wrapper and without DataParallel's prefix."""
    for wrapper in WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"{path} holds no state_dict: a mapping of names to tensors is needed")
    prefix = "module." if all(key.startswith("module.") for key in data) else ""
    return {key.removeprefix(prefix): value for key, value in data.items()}


def _listed(kind: str, keys: Iterable[str]) -> str:
    """`2 missing: a, b`, or nothing."""
    keys = list(keys)
    more = ", ..." if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{more}" if keys else ""
