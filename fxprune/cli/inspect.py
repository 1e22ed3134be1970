"""`fxprune inspect`."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import click
from torch import fx

import fxprune as fp
from fxprune.cli.console import working
from fxprune.cli.examples import noise, of_plan
from fxprune.cli.held import held_lines
from fxprune.cli.models import resolve
from fxprune.cli.options import Sizes
from fxprune.cli.side_by_side import show_diff
from fxprune.diff import diff, lifted
from fxprune.drawing import draw
from fxprune.errors import OutputError, SpecError
from fxprune.types import Coupling, Plan


@click.command()
@click.argument("spec")
@click.option("--input-size", type=Sizes(), help="Shape of one input.  [default: the model's own]")
@click.option("--heads", is_flag=True, help="Take whole heads of attention for units.")
@click.option("--code", is_flag=True, help="Print the code of the network that the passes work on, lifted.")
@click.option("--diff", "other", metavar="SPEC", help="Show SPEC beside it: another network, or a folder of `prune`.")
@click.option("--draw", "drawing", type=click.Path(path_type=Path), help="Write the groups as a picture, an SVG file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    spec: str,
    input_size: tuple[int, ...] | None,
    heads: bool,
    code: bool,
    other: str | None,
    drawing: Path | None,
    as_json: bool,
) -> None:
    """Show which channels of SPEC go together, which cannot go and why, and what it costs."""
    if other is not None and (code or drawing is not None or heads):
        raise click.UsageError("--diff stands alone: leave --code, --draw and --heads out")
    with working("tracing and analysing"):
        gm = traced(spec, input_size)
        beside = None if other is None else diff(gm, traced(other, input_size))
    if beside is not None:
        show_diff(beside, (spec, str(other)), as_json)
        return
    coupling = fp.analyze(gm, heads)
    if drawing is not None:
        write(drawing, draw(coupling))
    costs = fp.cost(gm, coupling).evaluate({})
    if as_json:
        click.echo(json.dumps({"spec": spec, "cost": dict(costs), **as_data(coupling)}, indent=1))
    elif code:
        click.echo(lifted(gm).code.strip())
    else:
        groups = [line for line in str(coupling).splitlines() if not line.startswith("held: ")]
        prices = [f"{name}: {value:,}" for name, value in costs.items()]
        click.echo("\n".join([*prices, *groups, *held_lines(coupling)]))


def traced(spec: str, input_size: tuple[int, ...] | None) -> fx.GraphModule:
    """The graph of a SPEC, or of a folder that `save` wrote, with the inputs of its plan where no size is given."""
    folder = Path(spec)
    if not (folder / "model.py").is_file():
        network = resolve(spec)
        return fp.capture(network.model, noise(network, input_size))
    network = resolve(f"{folder / 'model.py'}:{saved_class(folder)}")
    plan = folder / "plan.json"
    known = of_plan(Plan.from_json(plan.read_text(encoding="utf-8"))) if plan.is_file() and input_size is None else None
    return fp.capture(network.model, known or noise(network, input_size))


def saved_class(folder: Path) -> str:
    """The network's class: the last one in model.py. Raises SpecError where there is none."""
    try:
        tree = ast.parse((folder / "model.py").read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise SpecError(f"{folder / 'model.py'} cannot be read: {error}") from error
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if not names:
        raise SpecError(f"{folder / 'model.py'} has no class: give a folder that `fxprune prune --out` wrote")
    return names[-1]


def write(path: Path, text: str) -> None:
    """Write a file. Raises OutputError where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


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
