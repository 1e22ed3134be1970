"""`fxprune verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fxprune as fp
from fxprune.cli import main


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(fp.Plan({"features.0.weight": (0, 3, 5)}, [((2, 3, 8, 8), "torch.float32")]).to_json())
    return path


def test_a_plan_is_compared_with_the_oracle(networks: Path, plan: Path) -> None:
    result = verify(f"{networks}:tiny", "--plan", plan)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("verified: max error ")


def test_json(networks: Path, plan: Path) -> None:
    data = json.loads(verify(f"{networks}:tiny", "--plan", plan, "--input-size", "3,10,10", "--json").stdout)
    assert data["ok"] is True
    assert data["max_error"] <= data["tolerance"]


def test_a_plan_of_another_network_is_refused(networks: Path, plan: Path) -> None:
    plan.write_text(fp.Plan({"somewhere.weight": (0,)}).to_json())
    result = verify(f"{networks}:tiny", "--plan", plan, "--input-size", "3,8,8")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "somewhere.weight" in result.stderr


@pytest.mark.parametrize("text", ["{}", "no json", '{"version": 2}'])
def test_a_file_that_is_no_plan(networks: Path, plan: Path, text: str) -> None:
    plan.write_text(text)
    result = verify(f"{networks}:tiny", "--plan", plan)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_plan_that_is_not_there(networks: Path, tmp_path: Path) -> None:
    result = verify(f"{networks}:tiny", "--plan", tmp_path / "absent.json")
    assert result.exit_code == 1
    assert "absent.json cannot be read" in result.stderr
