"""`fxprune inspect`."""

from __future__ import annotations

import json
from typing import Any

import click
from torch import fx

import fxprune as fp
from fxprune.cli.console import working
from fxprune.cli.examples import noise
from fxprune.cli.held import held_lines
from fxprune.cli.models import resolve
from fxprune.cli.options import Sizes
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy
from fxprune.types import Coupling


@click.command()
@click.argument("spec")
@click.option("--input-size", type=Sizes(), help="Shape of one input.  [default: the model's own]")
@click.option("--heads", is_flag=True, help="Take whole heads of attention for units.")
@click.option("--code", is_flag=True, help="Print the code of the network that the passes work on, lifted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(spec: str, input_size: tuple[int, ...] | None, heads: bool, code: bool, as_json: bool) -> None:
    """Show which channels of SPEC go together, which cannot go and why, and what it costs."""
    network = resolve(spec)
    with working("tracing and analysing"):
        gm = fp.capture(network.model, noise(network, input_size))
        coupling = fp.analyze(gm, heads)
        costs = fp.cost(gm, coupling).evaluate({})
    if as_json:
        click.echo(json.dumps({"spec": spec, "cost": dict(costs), **as_data(coupling)}, indent=1))
    elif code:
        click.echo(lifted_code(gm))
    else:
        groups = [line for line in str(coupling).splitlines() if not line.startswith("held: ")]
        prices = [f"{name}: {value:,}" for name, value in costs.items()]
        click.echo("\n".join([*prices, *groups, *held_lines(coupling)]))


def lifted_code(gm: fx.GraphModule) -> str:
    """The code of the traced network with calls lifted back to its submodules."""
    copy = clone(gm)
    for step in (Tidy(), Lift()):
        step(copy)
    return copy.code.strip()


def as_data(coupling: Coupling) -> dict[str, Any]:
    """Groups and held axes as plain data."""
    return {
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "blocks": len(group.blocks),
                "axes": {str(axis): coupling.roles[axis] for axis in group.axes},
            }
            for group in coupling.groups
        ],
        "held": {str(axis): reason for axis, reason in coupling.held.items()},
    }
