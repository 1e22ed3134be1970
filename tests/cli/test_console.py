"""Errors become one line, and an interruption a clean stop."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from fxprune.cli.console import Commands, note, progress_bars, working
from fxprune.errors import BudgetError


def group(error: BaseException) -> click.Group:
    @click.group(cls=Commands)
    def main() -> None:
        pass

    @main.command()
    def work() -> None:
        click.echo("output")
        raise error

    return main


def test_a_mistake_is_one_line_and_exit_1() -> None:
    result = CliRunner().invoke(group(BudgetError("flops=0.01 is out\n  of reach")), ["work"])
    assert result.exit_code == 1
    assert result.stderr == "error: flops=0.01 is out of reach\n"
    assert result.stdout == "output\n"


def test_an_interruption_is_one_line_and_exit_130() -> None:
    result = CliRunner().invoke(group(KeyboardInterrupt()), ["work"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing was written\n"


def test_an_interruption_may_say_what_is_left() -> None:
    result = CliRunner().invoke(group(KeyboardInterrupt("the state is in out.partial")), ["work"])
    assert (result.exit_code, result.stderr) == (130, "interrupted: the state is in out.partial\n")


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(group(ZeroDivisionError()), ["work"], catch_exceptions=False)


def test_progress_is_silent_where_no_one_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as progress, working("thinking"):
        progress("calibrate", 0, 2)
        progress("calibrate", 2, 2)
        progress("shrink", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_progress_draws_a_bar_for_each_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich then takes any stream for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bars() as progress:
        progress("calibrate", 1, 2)
        progress("shrink", 1, 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibrate" in err
    assert "1/2" in err
    assert "shrink" in err


def test_the_last_error_of_a_stage_stays_behind_its_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bars() as progress:
        progress("squeeze", 1, 9, 0.51234)
        progress("polish", 1, 5, None)
        progress("squeeze", 2, 9)
        progress("squeeze", 3, 9, 0.03119)
        progress("squeeze", 8, 9, None)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().err).splitlines()
    assert [line for line in drawn if "8/9" in line][-1].rstrip().endswith("error 0.0312")
    assert "error" not in [line for line in drawn if "1/5" in line][-1]


def test_notes_do_not_mix_with_output(capsys: pytest.CaptureFixture[str]) -> None:
    note("random weights")
    assert capsys.readouterr() == ("", "note: random weights\n")
