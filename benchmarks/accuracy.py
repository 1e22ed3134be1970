"""Accuracy of real networks, pruned without retraining, beside Torch-Pruning, folding, and retraining with labels.

    python -m benchmarks.accuracy [--resume] [--only PATTERN ...] [--rows ROW ...] [--seeds 0 1 2] [--write]

Networks and images are those of the folder FXPRUNE_DATA (docs/benchmarks.md says what is there): trained by others,
labelled by others. Test images choose nothing. Every row runs in a process of its own, so that its peak memory is its
own. Results are appended to a file of JSON lines; a run that was stopped is continued with --resume. --write makes the
tables and the plot of what the file holds.
"""

from __future__ import annotations

import argparse
import fnmatch
import resource
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks import accuracy_folding, accuracy_ours, accuracy_peers, accuracy_plot, accuracy_retrain, accuracy_table
from benchmarks.accuracy_data import NETWORKS, SETTINGS, build, calibration, flops, judge
from benchmarks.accuracy_records import FOLDER, Record, add_arguments, carry_out, load, parsed
from benchmarks.accuracy_rows import KEY, PARTS, ROWS, Make, Task

RESULTS = FOLDER / "accuracy.jsonl"
MAKES: dict[str, Make] = {
    "dense": lambda task: (task.model, {}),
    "tp-l1": accuracy_peers.l1,
    "tp-l1-bn": accuracy_peers.l1_with_batch_norm,
    "tp-best": accuracy_peers.best,
    "tp-best-bn": accuracy_peers.best_with_batch_norm,
    "folding": accuracy_folding.folded,
    "retrained": accuracy_retrain.retrained,
    "least-squares": accuracy_ours.least_squares,
    **{name: accuracy_ours.recipe(name) for name in ("datafree", "fast", "psp", "best")},
}


class Run(NamedTuple):
    """One row of one network at one share of the FLOPs, with one draw of calibration images."""

    network: str
    row: str
    share: float
    seed: int


def measure(run: Run, options: argparse.Namespace) -> Record:
    """Make the network smaller and test it: percent, seconds, bytes."""
    torch.manual_seed(run.seed)
    dense = build(run.network).to(options.device)
    images = calibration(run.network, run.seed)
    task = Task(run.network, build(run.network).to(options.device), images, run.share, run.seed, options.epochs)
    started = time.perf_counter()
    small, notes = MAKES[run.row](task)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = judge(small, dense, run.network, options.test_limit)
    kept = flops(small, images) / flops(dense, images)
    return {**run._asdict(), **found, "kept": kept, "seconds": seconds, "bytes": peak, **notes}


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, network by network."""
    known = load(options.results, KEY) if options.resume else {}
    for network in chosen(options.only):
        setting = SETTINGS[network]
        yield from (run for run in [Run(network, "dense", 1.0, 0)] if run not in known)
        for share in options.shares or setting.shares:
            for name, row in ROWS.items():
                if {row.part, name} & set(options.rows) and row.possible(setting):
                    seeds = options.seeds if row.drawn else options.seeds[:1]
                    wanted = (Run(network, name, share, seed) for seed in seeds)
                    yield from (run for run in wanted if run not in known)


def chosen(patterns: list[str]) -> list[str]:
    """The networks that match, of all; those of the tables where nothing is asked for."""
    found = [name for name in SETTINGS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    if patterns and not found:
        raise SystemExit(f"no network matches {' '.join(patterns)}; there are: {', '.join(SETTINGS)}")
    return found or list(NETWORKS)


def _called(run: Run) -> str:
    return f"{run.network} {run.row} {run.share:g} seed {run.seed}"


def _found(record: Record) -> str:
    return (
        f"{record['top1']:.2f} %, agreement {record['agreement']:.2f} %, KL {record['kl']:.3f}, "
        f"{100 * record['kept']:.1f} % FLOPs, {record['seconds']:.0f} s, {record['bytes'] / 2**30:.1f} GiB"
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--rows", nargs="+", default=list(PARTS), choices=[*PARTS, *ROWS], help="parts, or single rows")
    parser.add_argument("--shares", nargs="+", type=float, help="of the FLOPs; by default those of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="draws of calibration images")
    parser.add_argument("--epochs", type=int, default=20, help="of retraining")
    add_arguments(parser, RESULTS)
    return parsed(parser, RESULTS)


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()

    def one(network: str, row: str, share: str, seed: str) -> Record:
        return measure(Run(network, row, float(share), int(seed)), options)

    def write() -> None:
        known = list(load(options.results, KEY).values())
        accuracy_table.write_all(known)
        accuracy_plot.draw(known)

    told, shared = (_called, _found), ["--epochs", options.epochs]
    carry_out("benchmarks.accuracy", options, one, lambda: runs(options), told, write, shared=shared, noun="rows")


if __name__ == "__main__":
    main()
