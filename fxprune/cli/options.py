"""The kinds of values that options take, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import click

import fxprune as fp

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


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


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _limit(flag: str, what: str) -> Decorator:
    return click.option(flag, type=float, help=f"Share of {what} to keep, or their absolute number above 1.")


limits = together(
    _limit("--flops", "the FLOPs"),
    _limit("--params", "the parameters"),
    _limit("--memory", "the bytes of one input's activations"),
)


timing = together(
    click.option("--latency", type=float, help="Share of the measured time of a forward to keep, or nanoseconds."),
    click.option("--latency-batch", type=click.IntRange(1), help="Inputs of each timed forward.  [default: 1]"),
    click.option("--latency-compiled", is_flag=True, help="Time the network as torch.compile runs it."),
)


def timing_of(options: Mapping[str, Any]) -> fp.Timing:
    """How latencies are measured. Raises UsageError where that is said and no latency is limited."""
    batch, compiled = options["latency_batch"], options["latency_compiled"]
    if options["latency"] is None and (batch is not None or compiled):
        raise click.UsageError("--latency-batch and --latency-compiled say how --latency is measured: give it, too")
    return fp.Timing(batch or 1, compiled)


def budget_of(options: Mapping[str, Any], *names: str) -> fp.Budget:
    """The budget that the options with these names give. Raises UsageError where none is given."""
    given = {name: options[name] for name in names}
    if all(limit is None for limit in given.values()):
        *others, last = (f"--{name.replace('_', '-')}" for name in names)
        raise click.UsageError(f"give a budget: at least one of {', '.join(others)} and {last}")
    return fp.Budget(**given)


shrinking = together(
    click.option(
        "--multiple-of",
        type=click.IntRange(1),
        help="Round kept widths to multiples of this. prune takes 16 or 8 by itself where that is free.",
    ),
    click.option(
        "--freeze", multiple=True, metavar="GLOB", help="Parameters, modules or groups that must keep their widths."
    ),
    click.option("--max-ratio", type=float, help="Largest share that any one group may lose."),
    click.option("--heads", is_flag=True, help="Let attention lose whole heads instead of dimensions of each."),
    click.option("--seed", type=int, default=0, help="Makes a run reproducible."),
    click.option("--no-verify", is_flag=True, help="Skip the comparison of the shrunk network with the oracle."),
)
folder = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
reporting = together(
    click.option(
        "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there as a web page."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
)
