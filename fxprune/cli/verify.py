"""`fxprune verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import torch
from torch.export import ExportedProgram

import fxprune as fp
from fxprune.cli.console import working
from fxprune.cli.examples import noise, of_plan
from fxprune.cli.models import resolve
from fxprune.cli.options import Sizes
from fxprune.errors import PlanError


@click.command()
@click.argument("spec")
@click.option("--plan", type=click.Path(path_type=Path), required=True, help="plan.json, as `fxprune prune` wrote it.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights: .safetensors, .pth or .pt.")
@click.option("--input-size", type=Sizes(), help="Shape of one input.  [default: that of the plan]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(spec: str, plan: Path, weights: Path | None, input_size: tuple[int, ...] | None, as_json: bool) -> None:
    """Shrink SPEC by a plan and compare it with the oracle, in float64. Exits with 1 where they differ."""
    chosen = read_plan(plan)
    network = resolve(spec, weights)
    planned = None if input_size or isinstance(network.model, ExportedProgram) else of_plan(chosen)
    example = planned or noise(network, input_size)
    with working("shrinking and comparing"), torch.no_grad():
        gm = fp.capture(network.model, example)
        proof = fp.verify(gm, fp.shrink(gm, chosen), chosen)
    click.echo(json.dumps({**asdict(proof), "ok": proof.ok}, indent=1) if as_json else str(proof))
    if not proof.ok:
        raise click.exceptions.Exit(1)


def read_plan(path: Path) -> fp.Plan:
    """The plan in a file. Raises PlanError where there is none."""
    try:
        return fp.Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from error
