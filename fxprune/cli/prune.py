"""`fxprune prune`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import fxprune as fp
from fxprune.cli.calibration import open_calibration
from fxprune.cli.console import note, progress_bars
from fxprune.cli.examples import first_of, noise
from fxprune.cli.models import Network, resolve
from fxprune.cli.options import Numbers, Sizes
from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.samples import Batches
from fxprune.errors import OutputError


@click.command()
@click.argument("spec")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option("--flops", type=float, help="Share of the FLOPs to keep, or their absolute number above 1.")
@click.option("--params", type=float, help="Share of the parameters to keep, or their absolute number above 1.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights: .safetensors, .pth or .pt.")
@click.option(
    "--calibration",
    metavar="DATA",
    help="Unlabelled data: a folder or .zip of images, .npz, .npy, .pt, or file.py:factory.",
)
@click.option("--images", type=click.IntRange(1), help="Use only so many calibration samples.")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Calibration samples at a time.")
@click.option("--mean", type=Numbers(), help="Mean of each channel, of values in [0, 1].  [default: the model's own]")
@click.option("--std", type=Numbers(), help="Standard deviation of each channel.  [default: the model's own]")
@click.option("--size", type=click.IntRange(1), help="Side of the centre crop of images.  [default: the model's own]")
@click.option("--resize", type=click.IntRange(1), help="Shorter side of images before the crop.")
@click.option("--input-size", type=Sizes(), help="Shape of one input; 1,H,W reads images in grey.")
@click.option("--recipe", default="fast", help="The pipeline of passes.")
@click.option("--multiple-of", type=click.IntRange(1), default=1, help="Round kept widths to multiples of this.")
@click.option("--freeze", multiple=True, metavar="GLOB", help="Parameters, modules or groups that must not shrink.")
@click.option("--max-ratio", type=float, help="Largest share that any one group may lose.")
@click.option("--heads", is_flag=True, help="Let attention lose whole heads instead of dimensions of each.")
@click.option("--seed", type=int, default=0, help="Makes a run reproducible.")
@click.option("--no-verify", is_flag=True, help="Skip the comparison of the shrunk network with the oracle.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prune(spec: str, out: Path, flops: float | None, params: float | None, as_json: bool, **options: Any) -> None:
    """Prune the network SPEC to a budget and write the smaller one."""
    if flops is None and params is None:
        raise click.UsageError("give a budget: --flops or --params, or both")
    budget = fp.Budget(flops=flops, params=params)
    check_writable(out)
    network = resolve(spec, options["weights"], options["seed"])
    if network.random:
        note(f"{spec} has random weights: give --weights for a trained network")
    calibration = None if options["calibration"] is None else _calibration(network, options)
    if calibration is None:
        args, kwargs = noise(network, options["input_size"]), None
    else:
        args, kwargs = first_of(calibration)
    with progress_bars() as progress:
        result = fp.prune(
            network.model,
            args,
            example_kwargs=kwargs,
            budget=budget,
            calibration=calibration,
            recipe=options["recipe"],
            verify=not options["no_verify"],
            seed=options["seed"],
            multiple_of=options["multiple_of"],
            freeze=options["freeze"],
            max_ratio=options["max_ratio"],
            heads=options["heads"],
            progress=progress,
        )
    result.save(out)
    if as_json:
        click.echo(json.dumps({**result.report.to_dict(), "out": str(out)}, indent=1))
    else:
        click.echo(f"{result.report}\nwritten to {out}")


def check_writable(out: Path) -> None:
    """Raises OutputError where a folder at `out` cannot be made or written, before any work is spent."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"{out} cannot be written: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: no permission in {existing}")


def _calibration(network: Network, options: Mapping[str, Any]) -> Any:
    own = network.preprocessing or Preprocessing()
    chosen = own.override(options["mean"], options["std"], options["size"], options["resize"])
    input_size = options["input_size"] or (3,)
    data = open_calibration(
        options["calibration"],
        chosen,
        batch_size=options["batch_size"],
        limit=options["images"],
        channels=input_size[0],
    )
    if chosen.mean is None and isinstance(data, Batches) and data.samples.preprocessed:
        note("without --mean and --std, images are scaled to [0, 1] and not normalised")
    return data
