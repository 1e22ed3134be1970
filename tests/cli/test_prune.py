"""`fxprune prune`, from the command line to the files it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from fxprune.cli import main
from fxprune.cli.models import resolve
from fxprune.recipes import RECIPES


def prune(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["prune", *map(str, arguments)], catch_exceptions=False)


def report_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_prune_writes_a_network_that_needs_no_fxprune(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = prune(f"{networks}:tiny", "--calibration", f"{networks}:tensor", "--flops", 0.6, "--out", out, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("fxprune report: recipe psp, seed 3\n")
    assert result.stdout.endswith(f"written to {out}\n")
    assert {path.name for path in out.iterdir()} >= {"model.py", "model.safetensors", "plan.json", "report.json"}
    code = (
        "import runpy, sys, torch, safetensors.torch as s\n"
        "space = runpy.run_path('model.py')\n"
        "network = [c for c in space.values() if isinstance(c, type) and issubclass(c, torch.nn.Module)][-1]()\n"
        "network.load_state_dict(s.load_file('model.safetensors'))\n"
        "assert network(torch.zeros(3, 3, 8, 8)).shape == (3, 4)\n"
        "assert not any(name.startswith('fxprune') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True, timeout=120)


def test_json_is_all_there_is_on_standard_output(networks: Path, tmp_path: Path) -> None:
    arguments = (f"{networks}:tiny", "--calibration", f"{networks}:tensor", "--out", tmp_path / "out", "--json")
    report = report_of(prune(*arguments, "--flops", 0.6, "--params", 0.7, "--memory", 0.8))
    assert report["out"] == str(tmp_path / "out")
    for cost in ("flops", "params", "memory"):
        assert report["cost"][cost]["after"] <= report["cost"][cost]["limit"]
    assert report["verification"]["ok"]


def test_the_same_seed_gives_the_same_files(networks: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        arguments = ("--calibration", f"{networks}:generator", "--flops", 0.6, "--out", tmp_path / name)
        assert prune(f"{networks}:tiny", *arguments).exit_code == 0
    for file in ("model.py", "plan.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("data", ["tensor", "generator", "pairs", "dicts"])
def test_calibration_of_every_kind(networks: Path, tmp_path: Path, data: str) -> None:
    arguments = ("--calibration", f"{networks}:{data}", "--flops", 0.6, "--out", tmp_path / "out", "--json")
    report = report_of(prune(f"{networks}:tiny", *arguments))
    assert report["cost"]["flops"]["after"] <= report["cost"]["flops"]["limit"]


def test_images_and_weights_from_files(networks: Path, pictures: Path, tmp_path: Path) -> None:
    source = resolve(f"{networks}:Tiny").model
    assert isinstance(source, torch.nn.Module)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    result = prune(
        f"{networks}:tiny",
        *("--weights", tmp_path / "w.pth", "--calibration", pictures, "--size", 8),
        *("--recipe", "magnitude", "--flops", 0.6, "--out", tmp_path / "out", "--json"),
    )
    report_of(result)
    assert result.stderr == "note: without --mean and --std, images are scaled to [0, 1] and not normalised\n"
    kept = load_file(tmp_path / "out" / "model.safetensors")["features.0.weight"]
    original = source.state_dict()["features.0.weight"]
    assert all(any(torch.equal(row, each) for each in original) for row in kept), "filters of the weights file"


def test_options_reach_the_library(networks: Path, tmp_path: Path) -> None:
    result = prune(
        f"{networks}:tiny",
        *("--calibration", f"{networks}:tensor", "--flops", 0.7, "--out", tmp_path / "out", "--json"),
        *("--freeze", "features.0*", "--multiple-of", 2, "--max-ratio", 0.5, "--no-verify"),
    )
    report = report_of(result)
    widths = {group["name"]: group["after"] for group in report["groups"]}
    assert widths.get("features.0.weight", 8) == 8
    assert all(width % 2 == 0 and width >= 4 for width in widths.values())
    assert report["verification"] is None


def test_the_report_as_a_web_page(networks: Path, tmp_path: Path) -> None:
    arguments = ("--calibration", f"{networks}:tensor", "--flops", 0.7, "--out", tmp_path / "out", "--recipe", "fast")
    page = tmp_path / "report.html"
    assert prune(f"{networks}:tiny", *arguments, "--html", page).exit_code == 0
    assert "<svg" in page.read_text() and "features.0.weight" in page.read_text()


def test_a_folder_with_other_files_is_refused_before_the_work(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = prune(f"{networks}:tiny", "--calibration", f"{networks}:nowhere", "--flops", 0.7, "--out", tmp_path)
    assert result.exit_code == 1 and "holds thesis.txt and no earlier result" in result.stderr


def test_the_size_of_inputs_that_nobody_says_is_mentioned(networks: Path, tmp_path: Path) -> None:
    arguments = (f"{networks}:tiny", "--flops", 0.7, "--recipe", "magnitude", "--out", tmp_path / "out")
    noted = "note: inputs are taken to be 3,224,224: give --input-size where they are not"
    assert noted in prune(*arguments).stderr
    assert noted not in prune(*arguments, "--input-size", "3,16,16").stderr


def test_random_weights_are_mentioned(networks: Path, tmp_path: Path) -> None:
    result = prune(
        "torchvision:squeezenet1_1",
        *("--calibration", f"{networks}:tensor", "--flops", 0.6, "--out", tmp_path / "out"),
    )
    assert "note: torchvision:squeezenet1_1 has random weights: give --weights for a trained network" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flops", "0"], "error: flops=0.0"),
        (["--flops", "nan"], "error: flops=nan"),
        (["--max-error", "0"], "error: max_error=0.0: an error is a number above 0"),
        (["--max-error", "nan"], "error: max_error=nan: an error is a number above 0"),
        (["--flops", "0.0001"], "error: "),
        (["--flops", "0.5", "--recipe", "nonsense"], "error: recipe 'nonsense' is not known; there are: "),
        (["--flops", "0.5", "--importance", "nonsense"], "error: importance 'nonsense' is not known; there are: "),
        (["--flops", "0.5", "--allocation", "nonsense"], "error: allocation 'nonsense' is not known; there are: "),
        (["--flops", "0.5", "--calibration", "absent"], "error: absent: no such file or folder"),
        (["--flops", "0.5", "--calibration", "{file}:nothing"], "error: the calibration data is empty"),
        (["--flops", "0.5", "--calibration", "{file}:spoilt"], "error: "),
        (["--flops", "0.5", "--weights", "absent.pth"], "error: absent.pth: no such file"),
        (["--flops", "0.5", "--freeze", "nothing_like_it"], "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(
    networks: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    given = [argument.replace("{file}", str(networks)) for argument in arguments]
    result = prune(f"{networks}:tiny", "--calibration", f"{networks}:tensor", "--out", out, *given)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_told_before_the_work(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        result = prune(f"{networks}:interrupted", "--flops", 0.5, "--out", out)
        assert result.exit_code == 1
        assert result.stderr == f"error: {out} cannot be written: {tmp_path / 'file'} is a file\n"


@pytest.mark.parametrize("recipe", ["datafree", "magnitude"])
def test_recipes_without_images(networks: Path, tmp_path: Path, recipe: str) -> None:
    options = ("--input-size", "3,8,8", "--flops", 0.6, "--out", tmp_path / "out", "--json")
    report = report_of(prune(f"{networks}:tiny", "--recipe", recipe, *options))
    assert report["recipe"] == recipe
    assert report["cost"]["flops"]["after"] <= report["cost"]["flops"]["limit"]


@pytest.mark.parametrize("recipe", ["fast", "psp", "best"])
def test_missing_images_are_told_with_the_recipes_that_need_none(networks: Path, tmp_path: Path, recipe: str) -> None:
    options = ("--input-size", "3,8,8", "--flops", 0.6, "--out", tmp_path / "out")
    result = prune(f"{networks}:tiny", "--recipe", recipe, *options)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: calibration is missing")
    assert "the recipe 'datafree'" in result.stderr and "'magnitude'" in result.stderr


def test_an_error_as_a_budget(networks: Path, tmp_path: Path) -> None:
    options = ("--recipe", "fast", "--out", tmp_path / "out", "--json")
    arguments = ("--calibration", f"{networks}:batches", "--max-error", 0.3, "--flops", 0.9, *options)
    report = report_of(prune(f"{networks}:tiny", *arguments))
    assert report["cost"]["flops"]["after"] <= report["cost"]["flops"]["limit"]
    assert report["max_error"] == 0.3
    assert report["stages"][-1]["after"] <= 0.3


def test_a_missing_budget_is_a_usage_error(networks: Path, tmp_path: Path) -> None:
    result = prune(f"{networks}:tiny", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "give a budget: at least one of --flops, --params, --memory, --latency and --max-error" in result.stderr


def test_help_tells_all_recipes(networks: Path) -> None:
    result = prune("--help")
    for recipe in RECIPES:
        assert f"{recipe}: " in " ".join(result.stdout.split()), recipe
    assert "[default: psp]" in result.stdout


def test_ctrl_c_stops_cleanly(networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fxprune", "prune", f"{networks}:tiny", "--flops", "0.6", "--out", str(out)]
    command += ["--calibration", f"{networks}:interrupted"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "interrupted: nothing was written\n"
    assert not out.exists()


@pytest.mark.usefixtures("counting")
def test_a_measured_time_is_a_budget(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "cache"))
    options = ("--recipe", "magnitude", "--latency", 0.98, "--latency-batch", 64, "--json")
    cost = report_of(prune(f"{networks}:wide", *options, "--input-size", "3,8,8", "--out", tmp_path / "out"))["cost"]
    assert cost["latency"]["after"] <= cost["latency"]["limit"] < cost["latency"]["before"]
    assert "aten.conv2d.default" in (tmp_path / "cache" / "latency.json").read_text()


def test_whole_heads_can_go(transformer: str, tmp_path: Path) -> None:
    options = (
        "--recipe",
        "magnitude",
        "--params",
        0.5,
        "--multiple-of",
        1,
        "--input-size",
        "3,16,16",
        "--json",
        "--heads",
    )
    report = report_of(prune(transformer, *options, "--out", tmp_path / "out"))
    attention = next(group for group in report["groups"] if group["name"].endswith("in_proj_weight"))
    assert attention["before"] == 4 and attention["after"] < 4
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["heads"] is True
