"""The kinds of values that options take."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click


class Numbers(click.ParamType[tuple[float, ...]]):
    """Finite numbers separated by commas, such as 0.485,0.456,0.406."""

    name = "a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(isfinite, numbers)):
            self.fail(f"{value!r} is not a list of numbers separated by commas", param, ctx)
        return numbers


class Sizes(click.ParamType[tuple[int, ...]]):
    """Positive whole numbers separated by commas, such as 3,224,224."""

    name = "c,h,w"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The sizes as a tuple."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in value.split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a list of positive whole numbers separated by commas", param, ctx)
        return sizes
