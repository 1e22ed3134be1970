"""Weights files: every form that is read, and the message for every mismatch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxprune.cli.weights import load_weights
from fxprune.errors import WeightsError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def same(state: dict[str, Any]) -> Any:
    return state


@pytest.mark.parametrize(
    "wrap",
    [
        same,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["plain", "state_dict", "model", "DataParallel", "state_dict of DataParallel", "without counters"],
)
def test_forms_that_are_read(tmp_path: Path, wrap: Any) -> None:
    source, model = network(), network()
    assert not equal(source, model)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert equal(source, model)


def test_safetensors(tmp_path: Path) -> None:
    source, model = network(), network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert equal(source, model)


def test_mismatches_are_named_and_change_nothing(tmp_path: Path) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state: dict[str, Any] = dict(network().state_dict())
    state["0.weight"] = torch.zeros(5, 3, 3, 3)
    del state["1.running_mean"]
    state |= {f"extra{number}": torch.zeros(1) for number in range(7)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'w.pth'} does not match Sequential: 1 missing: 1.running_mean; "
        "7 unexpected: extra0, extra1, extra2, extra3, extra4, ...; "
        "1 of another shape: 0.weight (5, 3, 3, 3) instead of (4, 3, 3, 3)"
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        load_weights(network(), tmp_path / "w.pth")


def test_a_pickled_module_is_not_run(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="cannot be read as plain weights"):
        load_weights(network(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(WeightsError, match=f"{name} cannot be read as plain weights"):
        load_weights(network(), tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(network(), tmp_path / "w.pth")
