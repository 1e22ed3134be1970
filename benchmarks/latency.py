"""Time of a forward, dense and pruned, beside the FLOPs: how much of what pruning saves on paper is saved in time.

    python -m benchmarks.latency [--resume] [--only PATTERN ...] [--shares 0.58] [--modes eager compiled frozen]
                                 [--batches 1 32] [--device cuda] [--write]

Networks of torchvision with random weights, which take as long as trained ones: one ratio for all groups, by the
weights, nothing corrected. All forms of a network are timed in turns, in one process. Results are appended to a file of
JSON lines; a run that was stopped is continued with --resume. --write makes the table of what the file holds.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._inductor import config
from torch.utils.benchmark import Timer
from torchvision.models import get_model

import fxprune as fp
from benchmarks.accuracy_records import FOLDER, Record, add_arguments, carry_out, load, parsed, write
from benchmarks.accuracy_table import PAGE, measured
from fxprune.latency.table import machine

RESULTS = FOLDER / "latency.jsonl"
KEY = ("network", "share", "mode", "batch")
NETWORKS = {"resnet50": "ResNet-50", "resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
MODES = ("eager", "compiled", "frozen")  # frozen: compiled with the weights as constants, so that BatchNorm is folded
SIDE = 224
ROUNDS = 7  # of timing, in each of which every form has its turn
SHORTEST = 0.5  # seconds of a turn
# What each form is asked for; the share stands for its number.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "any": ("FLOPs, any widths", {"multiple_of": 1}),
    "sixteen": ("FLOPs, multiples of 16", {"multiple_of": 16}),
    "latency": ("latency", {}),
}


class Run(NamedTuple):
    """One network at one share, run in one manner with so many images at once."""

    network: str
    share: float
    mode: str
    batch: int


def measure(run: Run, options: argparse.Namespace) -> Record:
    """Make the forms and time them: FLOPs and milliseconds of each."""
    torch.manual_seed(0)
    dense = get_model(run.network).eval().to(options.device)
    images = torch.randn(run.batch, 3, SIDE, SIDE, device=options.device)
    results = {name: pruned(dense, images[:1], run, name) for name in FORMS}
    times = milliseconds({"dense": dense} | {name: result.model for name, result in results.items()}, images, run.mode)
    costs = {"dense": next(iter(results.values())).report.before} | {
        name: result.report.after for name, result in results.items()
    }
    forms = {name: {"milliseconds": times[name], "flops": costs[name]["flops"]} for name in times}
    report = results["latency"].report
    foretold = report.after["latency"] / report.before["latency"]
    device = machine(torch.device(options.device))
    return {**run._asdict(), **forms, "foretold": foretold, "device": device}


def pruned(dense: nn.Module, image: Tensor, run: Run, form: str) -> fp.Result:
    """The network within a share of its FLOPs, or of its measured time."""
    limit = {"latency" if form == "latency" else "flops": run.share}
    timing = fp.Timing(run.batch, compiled=run.mode != "eager")
    return fp.prune(
        dense, image, budget=fp.Budget(**limit), recipe="magnitude", verify=False, timing=timing, **FORMS[form][1]
    )


@torch.no_grad()
def milliseconds(forms: dict[str, nn.Module], images: Tensor, mode: str) -> dict[str, float]:
    """Milliseconds for a batch: the median of rounds in which the forms take turns."""
    ready: dict[str, Callable[[Tensor], Any]] = {
        name: form if mode == "eager" else torch.compile(form, dynamic=False) for name, form in forms.items()
    }
    with config.patch(freezing=mode == "frozen"):
        for form in ready.values():
            form(images)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, form in ready.items():
            timer = Timer("form(x)", globals={"form": form, "x": images}, num_threads=torch.get_num_threads())
            times[name].append(1000 * timer.blocked_autorange(min_run_time=SHORTEST).median)
    return {name: median(found) for name, found in times.items()}


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, network by network."""
    known = load(options.results, KEY) if options.resume else {}
    for network in NETWORKS:
        if any(fnmatch.fnmatch(network, pattern) for pattern in options.only):
            wanted = (
                Run(network, share, mode, batch)
                for share in options.shares
                for mode in options.modes
                for batch in options.batches
            )
            yield from (run for run in wanted if run not in known)


def page(records: Sequence[Record]) -> Iterator[str]:
    """A table with a line for each form of each network, mode and batch."""
    yield "| network | run | batch | limit on | FLOPs kept | time kept | of the saving | dense | pruned |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for found in sorted(records, key=lambda found: (*NETWORKS,).index(found["network"])):
        for form, (title, _) in FORMS.items():
            dense, small = found["dense"], found[form]
            flops, time = (small[kind] / dense[kind] for kind in ("flops", "milliseconds"))
            limit = f"{title} {found['share']:.0%}"
            if form == "latency":
                limit += f" (foretold {found['foretold']:.1%})"
            cells = [
                NETWORKS[found["network"]],
                found["mode"],
                str(found["batch"]),
                limit,
                f"{flops:.1%}",
                f"{time:.1%}",
            ]
            cells += [f"{(1 - time) / (1 - flops):.0%}", *(f"{one['milliseconds']:.1f} ms" for one in (dense, small))]
            yield f"| {' | '.join(cells)} |"
    named = [{"where": found["device"]} for found in records]
    yield from ("", *measured(named, "python -m benchmarks.latency --write"))


def _told(record: Record) -> str:
    shown = (f"{name} {record[name]['milliseconds']:.1f} ms" for name in ("dense", *FORMS))
    return ", ".join(shown)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.58], help="of the FLOPs, or of the time")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    add_arguments(parser, RESULTS)
    return parsed(parser, RESULTS)


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()

    def one(network: str, share: str, mode: str, batch: str) -> Record:
        return measure(Run(network, float(share), mode, int(batch)), options)

    def document() -> None:
        write(PAGE, "latency", "\n".join(page(list(load(options.results, KEY).values()))))

    told = (lambda run: f"{run.network} {run.share:g} {run.mode} batch {run.batch}", _told)
    carry_out("benchmarks.latency", options, one, lambda: runs(options), told, document, images=False)


if __name__ == "__main__":
    main()
