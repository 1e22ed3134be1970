"""What each ingredient of `psp` earns: every one is taken away or replaced, one at a time.

    python -m benchmarks.ablation [--resume] [--only PATTERN ...] [--variants NAME ...] [--seeds 0 1 2] [--write]

Three networks at half their FLOPs, three disjoint draws of calibration images; every run in a process of its own.
Results are appended to a file of JSON lines; a run that was stopped is continued with --resume. --write makes the table
of what the file holds. Networks and images are those of benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch.fx.passes.infra.pass_base import PassBase

import fxprune as fp
from benchmarks.accuracy_data import ROOT, SETTINGS, build, calibration, flops, judge, library
from benchmarks.accuracy_ours import passes, run, without
from benchmarks.accuracy_records import Record, append, in_a_process, load, spread, where, write
from benchmarks.accuracy_rows import Task
from benchmarks.accuracy_table import PAGE, measured
from fxprune.allocate import METHODS
from fxprune.importance import IMPORTANCES
from fxprune.passes.choose import Choose

RESULTS, TRIAL = ROOT / "build" / "ablation.jsonl", ROOT / "build" / "ablation-trial.jsonl"
KEY = ("network", "variant", "share", "seed")
NETWORKS = ("cifar10_resnet8_mlperf", "cifar10_resnet20", "imagenet_mobilenet_v1_025")
SHARE = 0.5
WHOLE = "psp"
Passes = tuple[PassBase, ...]


def choosing(steps: Passes, importance: str | None = None, allocation: str | None = None) -> Passes:
    """The passes with another importance or allocation for Choose."""

    def other(step: Choose) -> Choose:
        return replace(step, importance=importance or step.importance, allocation=allocation or step.allocation)

    return tuple(other(step) if isinstance(step, Choose) else step for step in steps)


OFF = {
    "squeeze": ("without phase 1 (Squeeze)", ("Squeeze",)),
    "reconstruct": ("without least squares (Reconstruct)", ("Reconstruct", "Fuse")),
    "refine": ("without the polish by gradient (Refine)", ("Refine",)),
    "recalibrate": ("without BatchNorm re-estimation (Recalibrate)", ("Recalibrate",)),
}
USUAL = next(step for step in fp.pipeline("psp", budget=fp.Budget(flops=SHARE)) if isinstance(step, Choose))
VARIANTS: dict[str, tuple[str, Callable[[Passes], Passes]]] = {
    WHOLE: (f"all of `psp` ({USUAL.importance}, {USUAL.allocation})", lambda steps: steps),
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
    small = run(task, VARIANTS[one.variant][1](passes(task)))
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


def measure_all(options: argparse.Namespace) -> int:
    """Append what is asked for to the results; returns how many runs failed."""
    library()
    wanted, failed = list(runs(options)), 0
    shared = ["--device", options.device, *(["--test-limit", options.test_limit] if options.test_limit else [])]
    for done, one in enumerate(wanted, 1):
        name = f"[{done}/{len(wanted)}] {one.network} {one.variant} seed {one.seed}"
        print(name, file=sys.stderr, flush=True)
        found = in_a_process("benchmarks.ablation", ["--one", *one, *shared])
        if found is None:
            failed += 1
            print(f"{name}: failed", flush=True)
            continue
        append(options.results, found | {"where": where(options.device)})
        print(f"{name}: {found['top1']:.2f} %, KL {found['kl']:.3f}, {found['seconds']:.0f} s", flush=True)
    return failed


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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="leave out what the results have already")
    parser.add_argument(
        "--results", type=Path, help=f"by default {RESULTS.relative_to(ROOT)}, or with --test-limit a file beside it"
    )
    parser.add_argument("--test-limit", type=int, help="test images, to try it out; nothing can be written then")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--table-only", action="store_true", help="write it of the results, and run nothing")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.test_limit and (options.write or options.table_only):
        parser.error("what was measured with --test-limit is not written")
    options.results = options.results or (TRIAL if options.test_limit else RESULTS)
    return options


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()
    if options.one:
        network, variant, share, seed = options.one
        print(json.dumps(measure(Run(network, variant, float(share), int(seed)), options)))
        return
    failed = 0 if options.table_only else measure_all(options)
    if options.write or options.table_only:
        write(PAGE, "ablation", "\n".join(table(list(load(options.results, KEY).values()))))
    if failed:
        raise SystemExit(f"{failed} runs failed; the others are in {options.results}")


if __name__ == "__main__":
    main()
