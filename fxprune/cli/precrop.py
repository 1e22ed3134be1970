"""`fxprune precrop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import fxprune as fp
from fxprune.cli.console import progress_bars
from fxprune.cli.examples import noise
from fxprune.cli.models import resolve
from fxprune.cli.options import Sizes, budget_of, folder, limits, reporting, shrinking
from fxprune.cli.results import check_writable, show, write

METHODS = (
    "precrop: a convex program; uniform, erk, synflow, random: others to compare with. snip and grasp look at labelled "
    "data, and are there in Python only."
)


@click.command()
@click.argument("spec")
@folder
@limits
@click.option("--grow", "--config", is_flag=True, help="PreConfig: groups may also become wider than they are.")
@click.option("--method", metavar="NAME", default="precrop", help=METHODS)
@click.option("--reinitialise", is_flag=True, help="Draw all weights anew, for the new widths.")
@click.option("--input-size", type=Sizes(), help="Shape of one input.  [default: the model's own]")
@shrinking
@reporting
def precrop(spec: str, out: Path, html: Path | None, as_json: bool, **options: Any) -> None:
    """Set the widths of the network SPEC before it is trained, without data, and write it.

    Its weights are fresh: train it from scratch.
    """
    budget = budget_of(options, "flops", "params", "memory")
    check_writable(out, html)
    network = resolve(spec, seed=options["seed"])
    passed_on = ("grow", "method", "reinitialise", "multiple_of", "freeze", "max_ratio", "heads", "seed")
    with progress_bars() as progress:
        result = fp.precrop(
            network.model,
            noise(network, options["input_size"]),
            budget=budget,
            verify=not options["no_verify"],
            progress=progress,
            **{name: options[name] for name in passed_on if options[name] is not None},
        )
    write(result, out, html)
    show(result.report, out, as_json)
