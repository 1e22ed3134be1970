"""The demo: its network, its weights, and the command."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fxprune.cli import main
from fxprune.demo.digits import Digits, load
from fxprune.demo.network import WEIGHTS, trained
from fxprune.demo.run import latencies
from fxprune.demo.train import accuracy, shifted, train


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return load()


def test_digits_are_split_without_overlap(digits: tuple[Digits, Digits]) -> None:
    training, test = digits
    assert training.images.shape == (1000, 1, 16, 16)
    assert test.images.shape == (797, 1, 16, 16)
    assert training.images.min() >= 0
    assert training.images.max() <= 1
    both = torch.cat([training.images, test.images]).flatten(1)
    assert len({tuple(image.tolist()) for image in both}) == 1797


def test_the_weights_are_small_and_accurate(digits: tuple[Digits, Digits]) -> None:
    assert WEIGHTS.stat().st_size < 700_000
    model = trained()
    assert accuracy(model, digits[1]) == pytest.approx(99.25, abs=0.2)


def test_training_learns(digits: tuple[Digits, Digits]) -> None:
    few = Digits(*(part[:400] for part in digits[0]))
    assert accuracy(train(few, epochs=5), few) > 40


def test_shifted_images_keep_their_shape_and_move_by_two_at_most() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8, 8] = 1
    generator = torch.Generator().manual_seed(0)
    places = torch.cat([shifted(image, generator) for _ in range(100)]).nonzero()[:, 2:]
    assert len(places) == 100
    assert places.min() == 6
    assert places.max() == 10


def test_latencies_tell_a_slow_network_from_a_fast_one() -> None:
    fast, slow = nn.Identity(), nn.Sequential(*[nn.Linear(256, 256) for _ in range(20)])
    quick, long = latencies(fast, slow, torch.zeros(64, 256), rounds=5)
    assert 0 < quick < long


def test_the_command_prints_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["demo", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    dense, shrunk, pruned = (float(percent) for percent in re.findall(r"(\d+\.\d\d) %", result.stdout))
    assert dense == pytest.approx(99.25, abs=0.2)
    assert shrunk < pruned
    assert pruned > dense - 2
    assert re.search(r"\d\.\d\d times as fast here, pruned in \d+\.\d s; 797 test images", result.stdout)
    assert "verified: max error" in result.stdout
    assert str(out / "model.py") in result.stdout
    assert (out / "model.py").is_file()
    flops = json.loads((out / "report.json").read_text())["cost"]["flops"]
    assert 0.45 * flops["before"] < flops["after"] <= 0.5 * flops["before"]


def test_without_scikit_learn_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr == "error: the demo's digits come with scikit-learn: pip install 'fxprune[demo]'\n"
