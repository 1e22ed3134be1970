"""Ctrl-C in the middle of the work: what is left goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fxprune.checkpoint import Checkpoint
from fxprune.cli import main
from fxprune.cli.prune import state_folder

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "stage-squeeze.pt", "stage-refine.pt"  # the states of the steps by gradient in either phase


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """`fxprune prune` of the demo's network, in `folder`."""
    command = [sys.executable, "-m", "fxprune", "prune", f"{ROOT}/fxprune/demo/network.py:trained", "--out", "out"]
    command += ["--calibration", "images.npy", "--flops", "0.5", "--input-size", "1,16,16", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was written to standard error."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def interrupt(process: subprocess.Popen[str], state: Path) -> None:
    """Press Ctrl-C as soon as the file `state` is there, and see the process end cleanly."""
    deadline = time.monotonic() + 300
    while not state.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = "interrupted: the state is in out.partial; the same command with --resume goes on\n"
    assert finish(process) == (130, told)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    folder, other = tmp_path / "interrupted", tmp_path / "whole"
    for each in (folder, other):
        each.mkdir()
        np.save(each / "images.npy", np.random.default_rng(0).random((384, 1, 16, 16), dtype=np.float32))
    partial = folder / "out.partial"
    interrupt(start(folder), partial / FIRST)
    assert not (folder / "out").exists()

    whole = (partial / FIRST).read_bytes()
    (partial / FIRST).write_bytes(whole[:-100])
    code, err = finish(start(folder, "--resume"))
    assert code == 1
    assert err.startswith(f"error: out.partial/{FIRST} is damaged and cannot be read: delete the folder out.partial")

    (partial / FIRST).write_bytes(whole)
    interrupt(start(folder, "--resume"), partial / SECOND)
    assert finish(start(folder, "--resume")) == (0, "")
    assert names_in(folder) == ["images.npy", "out"]
    assert finish(start(other)) == (0, "")
    for name in ("model.safetensors", "model.py", "plan.json"):
        assert (folder / "out" / name).read_bytes() == (other / "out" / name).read_bytes(), name


@pytest.fixture
def small(networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`fxprune prune` of a tiny network to `out`, in an empty folder."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    command = ["prune", f"{networks}:tiny", "--out", "out", "--input-size", "3,8,8", "--flops", "0.6"]
    return lambda *options: CliRunner().invoke(main, [*command, "--recipe", "magnitude", *options])


def test_the_state_of_another_run_is_refused(small: Callable[..., Result]) -> None:
    Checkpoint.open("out.partial", {"made_by": "a test"}).save("choose", {"step": 1})
    result = small("--resume")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: out.partial holds the state of another run, with other settings (")
    assert 'made_by: "a test" there, null now' in result.stderr
    assert names_in(Path("out.partial")) == ["fxprune-run.json", "stage-choose.pt"]


def test_without_resume_the_state_of_another_run_is_dropped(small: Callable[..., Result]) -> None:
    Checkpoint.open("out.partial", {"made_by": "a test"}).save("choose", {"step": 1})
    result = small()
    assert (result.exit_code, names_in(Path())) == (0, ["out"])
    assert result.stderr == (
        "note: the state of an interrupted run in out.partial was dropped: --resume would have gone on from it\n"
    )


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_files_of_others_are_left_alone(small: Callable[..., Result], options: list[str]) -> None:
    Checkpoint.open("out.partial", {}).save("choose", {"step": 1})
    Path("out.partial", "mine.txt").write_text("")
    result = small(*options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: out.partial holds mine.txt, which fxprune did not write: it is left alone; move it away\n"
    )
    assert names_in(Path("out.partial")) == ["fxprune-run.json", "mine.txt", "stage-choose.pt"]


def test_with_nothing_to_go_on_from_it_starts_afresh(small: Callable[..., Result]) -> None:
    result = small("--resume")
    assert (result.exit_code, names_in(Path())) == (0, ["out"])
    assert result.stderr == "note: there is no state in out.partial: starting afresh\n"


def test_a_result_that_cannot_be_written_leaves_the_state(small: Callable[..., Result]) -> None:
    page = "report" * 41 + ".html"  # as long as a name may be, but not when it is being written
    result = small("--html", page)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"error: cannot write {page}: File name too long; "
        "the state is in out.partial; the same command with --resume goes on\n"
    )
    assert names_in(Path("out.partial")) == ["fxprune-run.json", "stage-choose.pt"]
    result = small("--html", "report.html", "--resume")
    assert (result.exit_code, result.stderr) == (0, "")
    assert names_in(Path()) == ["out", "report.html"]


def test_a_page_that_has_no_folder_is_refused_before_the_work(small: Callable[..., Result]) -> None:
    result = small("--html", "missing/report.html")
    assert (result.exit_code, result.stdout, names_in(Path())) == (1, "", [])
    assert result.stderr == "error: cannot write missing/report.html: there is no folder missing\n"


@pytest.mark.parametrize(
    ("out", "partial"), [("small", "small.partial"), ("a/b/", "a/b.partial"), ("v1.5", "v1.5.partial")]
)
def test_the_state_is_beside_the_result(out: str, partial: str) -> None:
    assert state_folder(Path(out)) == Path(partial)


def test_the_state_is_beside_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert state_folder(Path()) == tmp_path / "here.partial"
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert state_folder(Path("..")) == tmp_path / "here.partial"
