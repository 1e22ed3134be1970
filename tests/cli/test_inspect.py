"""`fxprune inspect`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

import fxprune as fp
from fxprune.cli import main
from fxprune.cli.models import resolve
from fxprune.cli.side_by_side import columns
from fxprune.diff import Diff, Line


def inspect(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result


def test_groups_held_axes_and_cost(networks: Path) -> None:
    text = inspect(f"{networks}:tiny", "--input-size", "3,8,8").stdout
    assert text.startswith("flops: 101,440\nparams: 860\n2 groups, ")
    assert "features.0.weight: 8 units\n    produces features.0.weight[0]\n" in text
    assert "\nheld: 7 axes:\n" in text
    assert "  an output of the network: 2 axes\n      classifier.weight[0], classifier.bias[0]\n" in text
    assert re.search(
        r"  kernel extent: 4 axes\n    aten.conv2d.default at .*: .*\n      features.0.weight\[2\] \(`conv2d`\)", text
    )


def test_json(networks: Path) -> None:
    data = json.loads(inspect(f"{networks}:tiny", "--input-size", "3,8,8", "--json").stdout)
    assert data["cost"] == {"flops": 101_440, "params": 860}
    assert [(group["name"], group["width"]) for group in data["groups"]] == [
        ("features.0.weight", 8),
        ("features.3.weight", 8),
    ]
    assert data["groups"][0]["axes"]["features.3.weight[1]"] == "consumes"
    assert "classifier.weight[0]" in data["held"]


def test_code_reads_like_a_forward(networks: Path) -> None:
    code = inspect(f"{networks}:tiny", "--input-size", "3,8,8", "--code").stdout
    assert "def forward(self, x" in code
    assert "self.classifier(" in code
    assert "torch.ops" not in code


def test_whole_heads(transformer: str) -> None:
    dimensions = inspect(transformer, "--input-size", "3,16,16").stdout
    whole = inspect(transformer, "--input-size", "3,16,16", "--heads").stdout
    assert ".in_proj_weight: 32 units in 8 blocks\n" in dimensions
    assert ".in_proj_weight: 4 units\n" in whole
    assert "combined with an axis that cannot shrink" in whole and "`add` (" not in whole


SIZE = ("--input-size", "3,8,8")


@pytest.fixture
def pruned(networks: Path, tmp_path: Path) -> Path:
    """A folder of the first network, pruned."""
    model = resolve(f"{networks}:tiny").model
    budget = fp.Budget(flops=0.6)
    return fp.prune(model, torch.randn(2, 3, 8, 8), budget=budget, recipe="magnitude").save(tmp_path / "small")


def test_diff_of_a_network_and_a_folder(networks: Path, pruned: Path) -> None:
    text = inspect(f"{networks}:tiny", *SIZE, "--diff", pruned).stdout
    assert text.startswith("modules: 5 of 7 changed\n  features.0: Conv2d(3, 8) -> Conv2d(3, ")
    assert text.endswith("code: 0 of 11 lines changed\n")
    assert "\x1b" not in text  # colours are for terminals


def test_diff_of_two_folders_takes_the_inputs_of_the_plan(pruned: Path) -> None:
    assert inspect(pruned, "--diff", pruned).stdout == "modules: 0 of 7 changed\ncode: 0 of 11 lines changed\n"


def test_diff_as_json(networks: Path, pruned: Path) -> None:
    data = json.loads(inspect(f"{networks}:tiny", *SIZE, "--diff", pruned, "--json").stdout)
    assert data["before"] == f"{networks}:tiny" and data["after"] == str(pruned)
    assert [line["name"] for line in data["modules"]][:2] == ["features.0", "features.1"]
    assert data["modules"][0]["before"].startswith("Conv2d(3, 8, ") and data["code"] == []


def test_diff_on_a_terminal_has_two_columns_in_colour() -> None:
    diff = Diff((Line("Conv2d(3, 8)", "Conv2d(3, 5)", "conv1"),), (Line("return x", "return x"), Line(None, "pass")))
    console = Console(force_terminal=True, color_system="standard", width=120, highlight=False)
    with console.capture() as shown:
        console.print(columns(diff, ("before", "after")))
    text = shown.get()
    assert "conv1: Conv2d(3, \x1b[1;31m8\x1b[0m)" in text and "conv1: Conv2d(3, \x1b[1;32m5\x1b[0m)" in text
    assert text.count("return x") == 2
    assert text.count("pass") == 1


def test_a_drawing(networks: Path, tmp_path: Path) -> None:
    picture = tmp_path / "coupling.svg"
    text = inspect(f"{networks}:tiny", *SIZE, "--draw", picture).stdout
    assert text.startswith("flops: 101,440\n")
    assert picture.read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "features.0.weight, 8 units, to features.3.weight" in picture.read_text()


def test_mistakes(networks: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "model.py").write_text("import torch\n")
    spec = f"{networks}:tiny"
    for arguments, code, message in (
        ((spec, *SIZE, "--diff", empty), 1, "has no class: give a folder that `fxprune prune --out` wrote"),
        ((spec, *SIZE, "--diff", tmp_path / "absent"), 1, "names no network"),
        ((spec, *SIZE, "--draw", tmp_path / "absent" / "a.svg"), 1, "cannot write"),
        ((spec, *SIZE, "--diff", spec, "--code"), 2, "--diff stands alone"),
    ):
        result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
        assert result.exit_code == code
        assert message in result.stderr
