"""Options that take several numbers."""

from __future__ import annotations

import click
import pytest

from fxprune.cli.options import Numbers, Sizes


def test_numbers() -> None:
    assert Numbers().convert("0.5, 1,2e-1", None, None) == (0.5, 1.0, 0.2)


@pytest.mark.parametrize("text", ["", "0.5;1", "a,b", "nan", "1,inf"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a list of numbers separated by commas"):
        Numbers().convert(text, None, None)


def test_sizes() -> None:
    assert Sizes().convert("3,224,160", None, None) == (3, 224, 160)


@pytest.mark.parametrize("text", ["", "3x224", "3,0,4", "-1", "1.5"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a list of positive whole numbers"):
        Sizes().convert(text, None, None)
