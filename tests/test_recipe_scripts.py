"""The scripts in docs/recipes/ run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from fxprune.importance import IMPORTANCES

FOLDER = Path(__file__).parents[1] / "docs" / "recipes"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
INT8 = "torchvision_to_int8.py"
LONG = {
    "continue_training.py",
    "detector_backbone.py",
    "own_importance.py",
    "segmentation.py",
    "to_onnx.py",
    "torchvision_classifier.py",
}


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in SCRIPTS if name != INT8],
)
def test_it_runs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    known = dict(IMPORTANCES)
    try:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    finally:
        IMPORTANCES.clear()
        IMPORTANCES.update(known)
    assert capsys.readouterr().out.strip()


def test_every_script_is_in_the_list() -> None:
    listed = (FOLDER / "index.md").read_text()
    assert [script for script in SCRIPTS if f"[{script}]({script})" not in listed] == []


def test_the_readme_shows_what_the_script_to_int8_has_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text()
    section = readme.partition("## On to int8")[2]
    code, printed = section.split("```python\n")[1].split("```\n\nprints\n\n```text\n")[:2]
    assert (FOLDER / INT8).read_text().endswith(code)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / INT8), run_name="__main__")
    assert capsys.readouterr().out == printed.split("```")[0]
