"""`fxprune inspect`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner, Result

from fxprune.cli import main


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
