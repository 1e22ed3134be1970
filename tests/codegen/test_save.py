"""Saving: all or nothing, an earlier result is replaced, anything else is refused."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import fx

from fxprune.capture import capture
from fxprune.codegen import save
from fxprune.errors import OutputError
from fxprune.passes.lift import Lift
from tests.networks import build, images

FILES = {"plan.json": '{"kept": 1}', "report.json": "{}"}


@pytest.fixture
def gm() -> fx.GraphModule:
    gm = copy.deepcopy(capture(build("Tied"), images()))
    Lift()(gm)
    return gm


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_everything_is_written(gm: fx.GraphModule, tmp_path: Path) -> None:
    where = save(gm, tmp_path / "a" / "out", FILES)
    assert names(where) == {"model.py", "model.safetensors", *FILES}
    assert (where / "plan.json").read_text() == FILES["plan.json"]
    tensors = load_file(where / "model.safetensors")
    assert set(tensors) == set(gm.state_dict()) > {"first.weight", "second.weight"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in gm.state_dict().items())
    assert names(where.parent) == {"out"}
    assert oct(where.stat().st_mode & 0o777) == oct(0o777 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_earlier_result_is_replaced(gm: fx.GraphModule, tmp_path: Path) -> None:
    save(gm, tmp_path / "out", {**FILES, "report.html": "old"})
    where = save(gm, tmp_path / "out", {"plan.json": "new"})
    assert names(where) == {"model.py", "model.safetensors", "plan.json"}
    assert (where / "plan.json").read_text() == "new"
    assert names(tmp_path) == {"out"}


def test_an_empty_directory_is_taken(gm: fx.GraphModule, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert names(save(gm, tmp_path / "out", FILES)) > {"model.py"}


@pytest.mark.parametrize("beside", [False, True], ids=["foreign", "beside a result"])
def test_what_is_not_ours_is_never_touched(gm: fx.GraphModule, tmp_path: Path, beside: bool) -> None:
    out = tmp_path / "out"
    if beside:
        save(gm, out, FILES)
    out.mkdir(exist_ok=True)
    (out / "thesis.txt").write_text("five years")
    before = names(out)
    with pytest.raises(OutputError, match=r"holds thesis\.txt"):
        save(gm, out, FILES)
    assert names(out) == before
    assert names(tmp_path) == {"out"}


def test_a_file_and_a_place_that_cannot_be_written_are_refused(gm: fx.GraphModule, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        save(gm, tmp_path / "file", FILES)
    with pytest.raises(OutputError, match="cannot write to .*out"):
        save(gm, tmp_path / "file" / "out", FILES)


def test_nothing_is_lost_when_writing_fails(
    gm: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = save(gm, tmp_path / "out", FILES)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        save(gm, where, {"plan.json": "new"})
    assert names(where) == {"model.py", "model.safetensors", *FILES}
    assert (where / "plan.json").read_text() == FILES["plan.json"]
    assert names(tmp_path) == {"out"}
