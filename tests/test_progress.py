"""Progress: listeners with and without room for the error."""

from __future__ import annotations

from typing import Any

from fxprune.progress import heard_by, silent


def test_listeners_of_three_and_of_four_arguments_are_heard() -> None:
    told: list[Any] = []
    heard_by(lambda stage, done, total: told.append((stage, done, total)))("refine", 1, 2, 0.5)
    heard_by(lambda stage, done, total, error: told.append((stage, done, total, error)))("refine", 1, 2, 0.5)
    heard_by(lambda *arguments: told.append(arguments))("refine", 1, 2, 0.5)
    assert told == [("refine", 1, 2), ("refine", 1, 2, 0.5), ("refine", 1, 2, 0.5)]


def test_where_no_error_is_known_none_is_told() -> None:
    told: list[Any] = []
    heard_by(lambda stage, done, total, error: told.append((stage, done, total, error)))("observe", 1, 2)
    assert told == [("observe", 1, 2, None)]


def test_nobody_may_listen() -> None:
    assert heard_by(None) is silent
