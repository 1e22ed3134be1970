"""`fxprune prune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

import fxprune as fp
from fxprune.api import run_recipe
from fxprune.checkpoint import Checkpoint, discard_state, holds_state
from fxprune.cli.calibration import open_calibration
from fxprune.cli.console import note, progress_bars
from fxprune.cli.examples import first_of, noise
from fxprune.cli.models import Network, resolve
from fxprune.cli.options import Numbers, Sizes, budget_of, folder, limits, reporting, shrinking, timing, timing_of
from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.results import check_writable, show, write
from fxprune.cli.samples import Batches
from fxprune.errors import OutputError
from fxprune.recipes import Settings

RECIPES = (
    "fast: closed form, the quickest; psp: two-phase reconstruction; best: as psp, with four times the work; "
    "datafree: corrected without any image; magnitude: removed by weight, nothing corrected."
)


@click.command()
@click.argument("spec")
@folder
@limits
@timing
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
@shrinking
@click.option("--resume", is_flag=True, help="Go on from the state in OUT.partial that an interrupted run left.")
@reporting
def prune(spec: str, out: Path, as_json: bool, **options: Any) -> None:
    """Prune the network SPEC to a budget and write the smaller one.

    Until the result is written, the state of the run is in the folder OUT.partial.
    """
    budget = budget_of(options, "flops", "params", "memory", "latency", "max_error")
    check_writable(out, options["html"])
    partial = state_folder(out)
    network = resolve(spec, options["weights"], options["seed"])
    if network.random:
        note(f"{spec} has random weights: give --weights for a trained network")
    try:
        result = _pruned(network, budget, partial, options)
        write(result, out, options["html"])
    except (KeyboardInterrupt, OutputError) as error:
        if not holds_state(partial):
            raise
        left = f"the state is in {partial}; the same command with --resume goes on"
        raise type(error)("; ".join(filter(None, (str(error), left)))) from error
    Checkpoint(partial).discard()
    show(result.report, out, as_json)


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
    passed_on = ("importance", "allocation", "seed", "multiple_of", "freeze", "max_ratio", "heads")
    with progress_bars() as progress:
        settings = Settings(
            budget=budget,
            calibration=calibration,
            verify=not options["no_verify"],
            timing=timing_of(options),
            progress=progress,
            **{name: options[name] for name in passed_on},
        )
        return run_recipe(options["recipe"], settings, network.model, args, kwargs, checkpoint=partial)


def _prepare(partial: Path, resume: bool) -> None:
    """Start afresh, without the state of an earlier run, unless the user wants to go on from it."""
    if not resume:
        found = holds_state(partial)
        discard_state(partial)
        if found:
            note(f"the state of an interrupted run in {partial} was dropped: --resume would have gone on from it")
    elif not holds_state(partial):
        note(f"there is no state in {partial}: starting afresh")


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
    if chosen.mean is None and chosen.std is None and isinstance(data, Batches) and data.samples.preprocessed:
        note("without --mean and --std, images are scaled to [0, 1] and not normalised")
    return data
