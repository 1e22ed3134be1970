"""Accuracy, size and latency of real networks: dense, pruned, int8, and pruned then int8.

    python -m benchmarks.quantize [--resume] [--only PATTERN ...] [--recipes psp] [--shares 0.58] [--seeds 0] [--write]

int8 is torchao's PT2E with X86InductorQuantizer: weights per channel, activations per tensor, calibrated on the images
that pruning is given. The four forms of a network are timed in turns, in one process. Results are appended to a file
of JSON lines; a run that was stopped is continued with --resume. --write makes the table of what the file holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._inductor import config
from torch.export import Dim, ExportedProgram
from torch.utils.benchmark import Timer
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import fxprune as fp
from benchmarks.accuracy import chosen
from benchmarks.accuracy_data import NETWORKS, SETTINGS, build, calibration, chunks, judge
from benchmarks.accuracy_records import FOLDER, Record, add_arguments, carry_out, load, parsed, spread, write
from benchmarks.accuracy_table import PAGE, measured
from fxprune.calls import attribute

RESULTS = FOLDER / "quantize.jsonl"
KEY = ("network", "recipe", "share", "seed")
FORMS = {"dense": "dense", "pruned": "pruned", "int8": "int8", "pruned_int8": "**pruned, int8**"}
ROUNDS = 5  # of timing, in each of which every form has its turn


class Run(NamedTuple):
    """One network, pruned by one recipe to one share of the FLOPs, with one draw of calibration images."""

    network: str
    recipe: str
    share: float
    seed: int


def measure(run: Run, options: argparse.Namespace) -> Record:
    """Make the four forms and test them: percent, bytes of the tensors, milliseconds for a batch."""
    torch.manual_seed(run.seed)
    dense, images = build(run.network), calibration(run.network, run.seed)
    made = forms(dense, images, run)
    found: dict[str, Any] = {
        name: judge(form, dense, run.network, options.test_limit) | {"bytes": size(form)} for name, form in made.items()
    }
    for name, milliseconds in latencies(made, images[: options.batch]).items() if options.batch else ():
        found[name]["milliseconds"] = milliseconds
    return {**run._asdict(), "batch": options.batch, **found}


def forms(dense: nn.Module, images: Tensor, run: Run) -> dict[str, fx.GraphModule]:
    """The network, smaller, quantized, and both."""
    budget = fp.Budget(flops=run.share)
    result = fp.prune(dense, images[:2], budget=budget, calibration=images, recipe=run.recipe, seed=run.seed)
    free = ({0: Dim.AUTO},)
    program = torch.export.export(dense, (images[:2],), dynamic_shapes=free, strict=True)
    small = result.program()
    return {
        "dense": program.module(check_guards=False),
        "pruned": small.module(check_guards=False),
        "int8": int8(program, images),
        "pruned_int8": int8(small, images),
    }


@torch.no_grad()
def int8(program: ExportedProgram, images: Tensor) -> fx.GraphModule:
    """The program with int8 weights and activations, as a module whose quantization is written into its graph."""
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    for batch in chunks(images, prepared):
        prepared(batch)
    converted: fx.GraphModule = convert_pt2e(prepared)
    return converted


def size(network: fx.GraphModule) -> int:
    """Bytes of the tensors that the graph reads: a quantized module keeps some that it no longer does."""
    names = {str(node.target) for node in network.graph.nodes if node.op == "get_attr"}
    tensors = (attribute(network, name) for name in names)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


@torch.no_grad()
def latencies(made: dict[str, fx.GraphModule], batch: Tensor) -> dict[str, float]:
    """Milliseconds for a batch, compiled by Inductor with frozen weights: the median of rounds that take turns."""
    with config.patch(freezing=True):
        compiled = {name: torch.compile(form, dynamic=False) for name, form in made.items()}
        for form in compiled.values():
            form(batch)
        times: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(ROUNDS):
            for name, form in compiled.items():
                timer = Timer(
                    "form(batch)", globals={"form": form, "batch": batch}, num_threads=torch.get_num_threads()
                )
                times[name].append(1000 * timer.blocked_autorange(min_run_time=0.3).median)
    return {name: median(found) for name, found in times.items()}


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """What is asked for, network by network; of the shares the largest where none is named."""
    known = load(options.results, KEY) if options.resume else {}
    for network in chosen(options.only):
        for recipe in options.recipes:
            for share in options.shares or SETTINGS[network].shares[:1]:
                wanted = (Run(network, recipe, share, seed) for seed in options.seeds)
                yield from (run for run in wanted if run not in known)


def page(records: Sequence[Record]) -> Iterator[str]:
    """A table with four lines for each network, recipe and share."""
    titles = ["network", "", "FLOPs", "top-1", "agreement", "size", "time", "speed-up"]
    yield from (_line(titles), "|" + "---|" * len(titles))
    for network in SETTINGS:
        for recipe, share in sorted({(r["recipe"], r["share"]) for r in records if r["network"] == network}):
            of_one = {"network": network, "recipe": recipe, "share": share}
            mine = [found for found in records if of_one.items() <= found.items()]
            for form in FORMS:
                yield _line(_cells(mine, form))
    yield from ("", *measured(records, "python -m benchmarks.quantize --write"))


def _cells(mine: Sequence[Record], form: str) -> list[str]:
    """The line of one form of a network, averaged over the draws of images."""
    first = mine[0]
    pruned = form.startswith("pruned")
    cells = [
        SETTINGS[first["network"]].title if form == "dense" else "",
        f"{FORMS[form]} (`{first['recipe']}`)" if pruned else FORMS[form],
        f"{100 * first['share']:.0f} %" if pruned else "100 %",
        *(spread([found[form][kind] for found in mine]) for kind in ("top1", "agreement")),
        f"{first[form]['bytes'] / 2**20:.2f} MiB",
    ]
    timed = [found for found in mine if "milliseconds" in found[form]]
    if timed:
        ratios = [found["dense"]["milliseconds"] / found[form]["milliseconds"] for found in timed]
        cells += [spread([found[form]["milliseconds"] for found in timed], 1) + " ms", spread(ratios)]
    return cells + [""] * (8 - len(cells))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(record: Record) -> str:
    shown = (f"{name} {record[name]['top1']:.2f} %, {record[name]['bytes'] / 2**20:.2f} MiB" for name in FORMS)
    return "; ".join(shown)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--recipes", nargs="+", default=["psp"])
    parser.add_argument("--shares", nargs="+", type=float, help="of the FLOPs; by default the largest of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="draws of calibration images")
    parser.add_argument("--batch", type=int, default=32, help="images that are timed at once; 0 to time nothing")
    add_arguments(parser, RESULTS)
    return parsed(parser, RESULTS)


def main() -> None:
    """Measure, and write what was measured."""
    options = arguments()

    def one(network: str, recipe: str, share: str, seed: str) -> Record:
        return measure(Run(network, recipe, float(share), int(seed)), options)

    def document() -> None:
        write(PAGE, "quantize", "\n".join(page(list(load(options.results, KEY).values()))))

    told = (lambda run: f"{run.network} {run.recipe} {run.share:g} seed {run.seed}", _told)
    shared = ["--batch", options.batch]
    carry_out("benchmarks.quantize", options, one, lambda: runs(options), told, document, shared=shared)


if __name__ == "__main__":
    main()
