"""The tables of docs/benchmarks.md about networks that are cropped before they are trained, from the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import NamedTuple

from benchmarks.accuracy_records import Record, spread, write
from benchmarks.accuracy_table import PAGE, measured
from benchmarks.precrop_networks import NETWORKS

KEY = ("network", "budget", "method", "seed")  # what a result is known by, beside its epochs
DENSE = "dense"
METHODS = {
    "precrop": "**fxprune, PreCrop**",
    "uniform": "uniform width",
    "preconfig": "**fxprune, PreConfig**",
    "synflow": "structured SynFlow",
    "erk": "ERK",
    "snip": "SNIP",
    "grasp": "GraSP",
    "random": "random",
}
EXTRA = ("snip", "grasp", "random")
MASKS = {"mask-weights": "single weights", "mask-filters": "filters", "mask-channels": "channels"}
COSTS = {"params": "parameters", "flops": "FLOPs"}


class Kind(NamedTuple):
    """A kind of table: its methods, the one that the others are compared with, and the costs that say something."""

    title: str
    methods: dict[str, str]
    reference: str
    costs: tuple[str, ...]


KINDS = (
    Kind("{}", METHODS, "uniform", ("params", "flops")),
    Kind("the densities of {}, at three granularities", MASKS, "mask-weights", ("params",)),
)


def write_all(records: Sequence[Record]) -> None:
    """Put the tables between their markers."""
    write(PAGE, "precrop", "\n".join(page(records)))


def page(records: Sequence[Record]) -> Iterator[str]:
    """Tables for each number of epochs, network and budget: of crops, and of granularities."""
    for epochs in sorted({found["epochs"] for found in records}):
        for network, setting in NETWORKS.items():
            mine = [found for found in records if (found["network"], found["epochs"]) == (network, epochs)]
            for kind in KINDS:
                for budget in setting.budgets:
                    title = f"### {setting.title}, {kind.title.format(share_of(budget))}"
                    lines = list(_table(mine, budget, kind))
                    yield from (f"{title}, {epochs} epochs", "", *lines, "") if lines else ()
    yield from measured(records, "python -m benchmarks.precrop --write")


def share_of(budget: str) -> str:
    """A budget in words: "50 % of the parameters"."""
    parts = [part.partition("=") for part in budget.split(",")]
    return " and ".join(f"{100 * float(share):.0f} % of the {COSTS[name]}" for name, _, share in parts)


def _table(records: Sequence[Record], budget: str, kind: Kind) -> Iterator[str]:
    """The dense network, and below it what was measured at the budget; nothing where there is only the former."""
    dense = [found for found in records if found["method"] == DENSE]
    mine = [found for found in records if found["budget"] == budget and found["method"] in kind.methods]
    if not mine:
        return
    scored = any("objective" in found for found in mine)
    titles = ["", *(COSTS[name] for name in kind.costs), *(["log density"] if scored else []), "top-1"]
    titles += [f"beside {kind.methods[kind.reference]}", "seeds"]
    yield from (_line(titles), "|" + "---|" * len(titles))
    tops = {found["seed"]: found["top1"] for found in mine if found["method"] == kind.reference}
    for method, title in {DENSE: DENSE, **kind.methods}.items():
        found = [one for one in (*dense, *mine) if one["method"] == method]
        if found:
            costs = [_cost(found, dense, name) for name in kind.costs] + ([_objective(found)] if scored else [])
            pairs = [one["top1"] - tops[one["seed"]] for one in found if one["seed"] in tops]
            beside = f"{mean(pairs):+.2f}" if pairs and method != kind.reference else ""
            yield _line([title, *costs, spread([one["top1"] for one in found]), beside, len(found)])


def _cost(found: Sequence[Record], dense: Sequence[Record], kind: str) -> str:
    """The mean in millions, and as a share of the dense network where that was measured."""
    count = mean(one[kind] for one in found)
    return f"{count / 1e6:.3f} M" + (f" ({100 * count / dense[0][kind]:.1f} %)" if dense else "")


def _objective(found: Sequence[Record]) -> str:
    """The sum of the logs of the layers' densities, which PreCrop maximises; that of the dense network is 0."""
    values = [one["objective"] for one in found if "objective" in one]
    return f"{mean(values):.2f}" if values else ""


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
