"""Accuracy of networks that are cropped before they are trained, beside uniform width and other ways to set widths.

    python -m benchmarks.precrop [--resume] [--only PATTERN ...] [--seeds 0 1 2] [--all] [--full] [--write]

Every network is trained from scratch on the 15,000 labelled images of the folder FXPRUNE_DATA, by the same recipe, and
tested once, after its last epoch; test images choose nothing. What is trained is called NETWORK/BUDGET/METHOD, and
--only takes such names as patterns. Each runs in a process of its own; results are appended to a file of JSON lines,
so that several of these commands may run side by side, each for others, and a run that was stopped goes on with
--resume. --write makes the tables of what the file holds. With --test-limit, that many images are trained on, too.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import fxprune as fp
from benchmarks import precrop_masks, precrop_table
from benchmarks.accuracy_data import flops
from benchmarks.accuracy_records import FOLDER, Record, add_arguments, carry_out, load, parsed
from benchmarks.precrop_networks import NETWORKS
from benchmarks.precrop_table import DENSE, EXTRA, KEY, MASKS, METHODS
from benchmarks.precrop_training import fit, top1, training_images

RESULTS = FOLDER / "precrop.jsonl"
EXAMPLE = torch.zeros(1, 3, 32, 32)
LABELLED, IMAGES = ("snip", "grasp"), 128  # methods that look at labelled training images, and at how many
EPOCHS, LONG = 20, 160
Row = tuple[str, str, str]  # network, budget, method


class Run(NamedTuple):
    """One network, at one budget, made smaller by one method, initialised and trained with one seed."""

    network: str
    budget: str
    method: str
    seed: int


def measure(run: Run, options: argparse.Namespace) -> Record:
    """Crop, train and test: percent, cost and seconds."""
    network, data = NETWORKS[run.network], training_images(options.test_limit)
    torch.manual_seed(run.seed)
    model, notes = made(network.build(), run)
    model.to(options.device)
    cost = {"params": sum(one.numel() for one in model.parameters()), "flops": flops(model, EXAMPLE)}
    started = time.perf_counter()
    fit(model, data, options.epochs, run.seed, network.rate)
    seconds = time.perf_counter() - started
    found = {"top1": top1(model, options.test_limit), "epochs": options.epochs, "seconds": seconds}
    return {**run._asdict(), **found, **cost, **notes}


def made(model: nn.Module, run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """The network to train, and what its own figures do not tell."""
    if run.method == DENSE:
        return model, {}
    if run.method in MASKS:
        return model, {"params": precrop_masks.mask(model, run.method, run.budget, run.seed)}
    result = cropped(model, run)
    widths = {group.name: group.after for group in result.report.groups}
    return result.model, {"widths": widths, "objective": result.report.objective["whole widths"]}


def cropped(model: nn.Module, run: Run) -> fp.Result:
    """The network at other widths, drawn anew. PreConfig has the parameters of the budget and the FLOPs of the whole.

    Raises what `fxprune.precrop` raises.
    """
    grow = run.method == "preconfig"
    limits = {"flops": 1.0} if grow else {}
    return fp.precrop(
        model,
        EXAMPLE,
        budget=fp.Budget(**(limits | limits_of(run.budget))),
        method="precrop" if grow else run.method,
        grow=grow,
        data=training_images(IMAGES) if run.method in LABELLED else None,
        reinitialise=True,
        seed=run.seed,
    )


def limits_of(budget: str) -> dict[str, float]:
    """The shares of the original by the names of the costs: "params=0.5,flops=0.5" as a dict."""
    return {name: float(share) for name, _, share in (part.partition("=") for part in budget.split(","))}


def parts(everything: bool) -> tuple[list[Row], ...]:
    """What is trained, in parts: what matters most comes first, and a part is done with all seeds before the next."""
    granularities = [("resnet20", budget, method) for budget in precrop_masks.KEPT for method in MASKS]
    return (
        _crops("resnet20", everything),
        [row for row in granularities if everything or row[1] == precrop_masks.USUAL],
        _crops("mobilenet_v2", everything),
    )


def _crops(network: str, everything: bool) -> list[Row]:
    methods = [name for name in METHODS if everything or name not in EXTRA]
    crops = [(network, budget, method) for budget in NETWORKS[network].budgets for method in methods]
    return [*crops, (network, DENSE, DENSE)]


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, part by part and seed by seed. Exits with one line where nothing matches."""
    known = load(options.results, (*KEY, "epochs")) if options.resume else {}
    found = [[row for row in part if _matches(row, options.only)] for part in parts(options.all)]
    if not any(found):
        names = ", ".join("/".join(row) for part in parts(options.all) for row in part)
        raise SystemExit(f"nothing matches {' '.join(options.only)}; there are: {names}")
    wanted = (Run(*row, seed) for part in found for seed in options.seeds for row in part)
    yield from (run for run in wanted if (*run, options.epochs) not in known)


def _matches(row: Row, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch("/".join(row), pattern) for pattern in patterns)


def _called(run: Run) -> str:
    return f"{'/'.join(run[:3])} seed {run.seed}"


def _found(record: Record) -> str:
    return (
        f"{record['top1']:.2f} %, {record['params']} parameters, {record['flops'] / 1e6:.2f} MFLOPs, "
        f"{record['seconds']:.0f} s"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of NETWORK/BUDGET/METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of initialisation and training")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(EXTRA)}, and all masks")
    parser.add_argument("--full", action="store_true", help=f"{LONG} epochs, on a GPU if there is one")
    parser.add_argument("--epochs", type=int, help=f"by default {EPOCHS}")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    add_arguments(parser, RESULTS)
    options = parsed(parser, RESULTS)
    options.epochs = options.epochs or (LONG if options.full else EPOCHS)
    if options.full and torch.cuda.is_available():
        options.device = "cuda"
    return options


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()
    torch.set_num_threads(options.threads)

    def one(network: str, budget: str, method: str, seed: str) -> Record:
        return measure(Run(network, budget, method, int(seed)), options)

    def write() -> None:
        precrop_table.write_all(list(load(options.results, (*KEY, "epochs")).values()))

    shared = ["--epochs", options.epochs, "--threads", options.threads]
    carry_out("benchmarks.precrop", options, one, lambda: runs(options), (_called, _found), write, shared=shared)


if __name__ == "__main__":
    main()
