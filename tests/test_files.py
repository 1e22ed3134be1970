"""Files that are written wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune.files import write_whole


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for text in ("old", "new: ±"):
        write_whole(path, text)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"] and path.read_text(encoding="utf-8") == "new: ±"


def test_where_it_cannot_be_replaced_no_draft_is_left(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "page.html", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
