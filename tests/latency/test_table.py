"""The table of measured times: kept, shared, and refused where it is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxprune.errors import BudgetError, OutputError
from fxprune.latency import Timing
from fxprune.latency.table import Table


def never() -> float:
    raise AssertionError("measured a second time")


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "latency.json"
    table = Table(path, "a machine")
    assert table.seconds("conv", lambda: 0.5) == 0.5
    assert table.seconds("conv", never) == 0.5
    table.save()
    assert Table(path, "a machine").seconds("conv", never) == 0.5
    assert Table(path, "another machine").seconds("conv", lambda: 0.25) == 0.25
    assert [file.name for file in path.parent.iterdir()] == ["latency.json"]


def test_what_another_process_measured_meanwhile_stays(tmp_path: Path) -> None:
    one, other = (Table(tmp_path / "latency.json", "a machine") for _ in range(2))
    one.seconds("conv", lambda: 0.5)
    other.seconds("conv", lambda: 0.75)
    other.seconds("linear", lambda: 0.25)
    one.save()
    other.save()
    found = json.loads((tmp_path / "latency.json").read_text())
    assert found == {"version": 1, "seconds": {"a machine": {"conv": 0.5, "linear": 0.25}}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "seconds": {}}', '{"version": 1, "seconds": [1]}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "latency.json"
    path.write_text(text)
    with pytest.raises(OutputError, match=r"latency\.json is no table of latencies .*: delete it, or name another"):
        Table(path, "a machine")
    assert path.read_text() == text


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the table of latencies cannot be read from"):
        Table(tmp_path, "a machine")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_file_that_cannot_be_written_is_told() -> None:
    table = Table(Path("/proc/fxprune/latency.json"), "a machine")
    table.seconds("conv", lambda: 0.5)
    with pytest.raises(OutputError, match="the table of latencies cannot be written to"):
        table.save()


def test_the_table_is_in_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Timing().path == tmp_path / "fxprune" / "latency.json"
    monkeypatch.setenv("FXPRUNE_CACHE", str(tmp_path / "mine"))
    assert Timing().path == tmp_path / "mine" / "latency.json"
    assert Timing(table=tmp_path / "named.json").path == tmp_path / "named.json"


@pytest.mark.parametrize("batch", [0, -1, 1.5, True, "8"])
def test_a_batch_is_a_whole_number(batch: object) -> None:
    with pytest.raises(BudgetError, match="of a Timing must be a whole number, at least 1"):
        Timing(batch=batch)  # type: ignore[arg-type] # the mistake
