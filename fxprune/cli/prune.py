"""`fxprune prune`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import fxprune as fp
from fxprune.checkpoint import discard_state, holds_state
from fxprune.cli.calibration import open_calibration
from fxprune.cli.console import note, progress_bars
from fxprune.cli.examples import first_of, noise
from fxprune.cli.models import Network, resolve
from fxprune.cli.options import Numbers, Sizes
from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.samples import Batches
from fxprune.codegen import refuse_foreign
from fxprune.errors import OutputError

RECIPES = (
    "fast: closed form, in seconds; psp: two-phase reconstruction, in minutes; best: the most accurate, the slowest; "
    "datafree: corrected without any image; magnitude: removed by weight, nothing corrected."
)


@click.command()
@click.argument("spec")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the result.")
@click.option("--flops", type=float, help="Share of the FLOPs to keep, or their absolute number above 1.")
@click.option("--params", type=float, help="Share of the parameters to keep, or their absolute number above 1.")
@click.option("--max-error", type=float, help="As small as this squared error of the outputs allows: 0.05 is 5 %.")
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
@click.option("--recipe", metavar="NAME", default="psp", help=RECIPES)
@click.option("--importance", metavar="NAME", help="How units are scored.  [default: the recipe's own]")
@click.option("--allocation", metavar="NAME", help="How groups share the budget.  [default: the recipe's own]")
@click.option("--multiple-of", type=click.IntRange(1), default=1, help="Round kept widths to multiples of this.")
@click.option("--freeze", multiple=True, metavar="GLOB", help="Parameters, modules or groups that must not shrink.")
@click.option("--max-ratio", type=float, help="Largest share that any one group may lose.")
@click.option("--heads", is_flag=True, help="Let attention lose whole heads instead of dimensions of each.")
@click.option("--seed", type=int, default=0, help="Makes a run reproducible.")
@click.option("--no-verify", is_flag=True, help="Skip the comparison of the shrunk network with the oracle.")
@click.option("--resume", is_flag=True, help="Go on from the state in OUT.partial that an interrupted run left.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there as a web page.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prune(spec: str, out: Path, as_json: bool, **options: Any) -> None:
    """Prune the network SPEC to a budget and write the smaller one.

    While it runs, its state is in the folder OUT.partial.
    """
    limits = {name: options[name] for name in ("flops", "params", "max_error")}
    if all(limit is None for limit in limits.values()):
        raise click.UsageError("give a budget: at least one of --flops, --params and --max-error")
    budget = fp.Budget(**limits)
    check_writable(out)
    partial = state_folder(out)
    network = resolve(spec, options["weights"], options["seed"])
    if network.random:
        note(f"{spec} has random weights: give --weights for a trained network")
    try:
        result = _pruned(network, budget, partial, options)
        result.save(out)
        if options["html"] is not None:
            _write_page(options["html"], result.report.to_html())
    except KeyboardInterrupt:
        if not holds_state(partial):
            raise
        raise KeyboardInterrupt(f"the state is in {partial}; the same command with --resume goes on") from None
    if as_json:
        click.echo(json.dumps({**result.report.to_dict(), "out": str(out)}, indent=1))
    else:
        click.echo(f"{result.report}\nwritten to {out}")


def state_folder(out: Path) -> Path:
    """OUT.partial, beside `out`."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(f"{named.name}.partial")


def _pruned(network: Network, budget: fp.Budget, partial: Path, options: Mapping[str, Any]) -> fp.Result:
    calibration = None if options["calibration"] is None else _calibration(network, options)
    if calibration is None:
        args, kwargs = noise(network, options["input_size"]), None
    else:
        args, kwargs = first_of(calibration)
    _prepare(partial, options["resume"])
    passed_on = ("recipe", "importance", "allocation", "seed", "multiple_of", "freeze", "max_ratio", "heads")
    with progress_bars() as progress:
        return fp.prune(
            network.model,
            args,
            example_kwargs=kwargs,
            budget=budget,
            calibration=calibration,
            verify=not options["no_verify"],
            checkpoint=partial,
            progress=progress,
            **{name: options[name] for name in passed_on},
        )


def _prepare(partial: Path, resume: bool) -> None:
    """Start afresh, without the state of an earlier run, unless the user wants to go on from it."""
    if not resume:
        discard_state(partial)
    elif not holds_state(partial):
        note(f"there is no state in {partial}: starting afresh")


def _write_page(path: Path, text: str) -> None:
    """Wholly or not at all. Raises OutputError where it cannot be written."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(out: Path) -> None:
    """Raises OutputError where a folder at `out` cannot be made, written or replaced, before any work is spent."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"{out} cannot be written: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: no permission in {existing}")
    refuse_foreign(out)


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
