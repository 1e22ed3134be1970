"""What each ingredient of `psp` earns: every one is taken away or replaced, one at a time.

    python -m benchmarks.ablation [--resume] [--only PATTERN ...] [--variants NAME ...] [--seeds 0 1 2] [--write]

Three networks at half their FLOPs, three disjoint draws of calibration images; every run in a process of its own. The
polish has a third of its epochs in all of them, so that the table takes hours rather than days.
Results are appended to a file of JSON lines; a run that was stopped is continued with --resume. --write makes the table
of what the file holds. Networks and images are those of benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch.fx.passes.infra.pass_base import PassBase

import fxprune as fp
from benchmarks.accuracy_data import SETTINGS, build, calibration, flops, judge
from benchmarks.accuracy_ours import passes, run, without
from benchmarks.accuracy_records import FOLDER, Record, add_arguments, carry_out, load, parsed, spread, write
from benchmarks.accuracy_rows import Task
from benchmarks.accuracy_table import PAGE, measured
from fxprune.allocate import METHODS
from fxprune.importance import IMPORTANCES
from fxprune.passes.choose import Choose
from fxprune.passes.refine import Refine

RESULTS = FOLDER / "ablation.jsonl"
KEY = ("network", "variant", "share", "seed")
NETWORKS = ("cifar10_resnet8_mlperf", "cifar10_resnet20", "imagenet_mobilenet_v1_025")
SHARE, EPOCHS = 0.5, 40  # of the FLOPs, to keep; of the polish
WHOLE = "psp"
Passes = tuple[PassBase, ...]


def shortened(steps: Passes) -> Passes:
    """The passes with fewer epochs of polish."""
    return tuple(replace(step, epochs=EPOCHS) if isinstance(step, Refine) else step for step in steps)


def choosing(steps: Passes, **options: Any) -> Passes:
    """The passes with other options for Choose."""
    return tuple(replace(step, **options) if isinstance(step, Choose) else step for step in steps)


OFF = {
    "squeeze": ("without phase 1 (Squeeze)", ("Squeeze",)),
    "reconstruct": ("without least squares (Reconstruct)", ("Reconstruct", "Fuse")),
    "refine": ("without the polish by gradient (Refine)", ("Refine",)),
    "recalibrate": ("without BatchNorm re-estimation (Recalibrate)", ("Recalibrate",)),
}
USUAL = next(step for step in fp.pipeline("psp", budget=fp.Budget(flops=SHARE)) if isinstance(step, Choose))
VARIANTS: dict[str, tuple[str, Callable[[Passes], Passes]]] = {
    WHOLE: (f"all of `psp` ({USUAL.importance}, {USUAL.allocation}; {EPOCHS} epochs of polish)", lambda steps: steps),
    **{name: (title, partial(without, names=names)) for name, (title, names) in OFF.items()},
    **{
        name: (f"importance: {name}", partial(choosing, importance=name))
        for name in IMPORTANCES
        if name != USUAL.importance
    },
    **{
        name: (f"allocation: {name}", partial(choosing, allocation=name))
        for name in METHODS
        if name != USUAL.allocation
    },
    "capacity": ("allocation: parameters do not count", partial(choosing, capacities=(0.0,))),
}


class Run(NamedTuple):
    """One variant on one network, with one draw of calibration images."""

    network: str
    variant: str
    share: float
    seed: int


def measure(one: Run, options: argparse.Namespace) -> Record:
    """Prune and test: percent and seconds."""
    torch.manual_seed(one.seed)
    dense, model = (build(one.network).to(options.device) for _ in range(2))
    images = calibration(one.network, one.seed)
    task = Task(one.network, model, images, one.share, one.seed)
    started = time.perf_counter()
    small = run(task, VARIANTS[one.variant][1](shortened(passes(task))))
    seconds = time.perf_counter() - started
    kept = flops(small, images) / flops(dense, images)
    found = judge(small, dense, one.network, options.test_limit)
    return {**one._asdict(), **found, "kept": kept, "seconds": seconds}


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, network by network."""
    known = load(options.results, KEY) if options.resume else {}
    networks = [name for name in NETWORKS if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)]
    if not networks:
        raise SystemExit(f"no network matches {' '.join(options.only)}; there are: {', '.join(NETWORKS)}")
    for network in networks:
        for seed in options.seeds:
            wanted = [Run(network, variant, SHARE, seed) for variant in options.variants]
            yield from (one for one in wanted if one not in known)


def _called(one: Run) -> str:
    return f"{one.network} {one.variant} seed {one.seed}"


def _found(record: Record) -> str:
    return f"{record['top1']:.2f} %, KL {record['kl']:.3f}, {record['seconds']:.0f} s"


def table(records: Sequence[Record]) -> Iterator[str]:
    """A line for each variant: accuracy on each network, and the mean difference from the whole, draw by draw."""
    tops = {tuple(found[name] for name in ("network", "variant", "seed")): found["top1"] for found in records}
    yield f"| | {' | '.join(SETTINGS[network].title for network in NETWORKS)} | difference |"
    yield "|" + "---|" * (len(NETWORKS) + 2)
    for variant, (title, _) in VARIANTS.items():
        mine = {key: top for key, top in tops.items() if key[1] == variant}
        if mine:
            values = [[top for key, top in mine.items() if key[0] == network] for network in NETWORKS]
            cells = [spread(found) if found else "" for found in values]
            pairs = [top - tops[n, WHOLE, s] for (n, _, s), top in mine.items() if (n, WHOLE, s) in tops]
            last = f"{mean(pairs):+.2f}" if pairs and variant != WHOLE else ""
            yield f"| {title} | {' | '.join(cells)} | {last} |"
    yield ""
    yield from measured(records, "python -m benchmarks.ablation --write")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="draws of calibration images")
    add_arguments(parser, RESULTS)
    return parsed(parser, RESULTS)


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()

    def one(network: str, variant: str, share: str, seed: str) -> Record:
        return measure(Run(network, variant, float(share), int(seed)), options)

    def document() -> None:
        write(PAGE, "ablation", "\n".join(table(list(load(options.results, KEY).values()))))

    carry_out("benchmarks.ablation", options, one, lambda: runs(options), (_called, _found), document)


if __name__ == "__main__":
    main()
