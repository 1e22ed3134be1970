"""Widths of torchvision networks at the budgets of the paper: `python -m benchmarks.precrop_widths [--write]`.

"Structured Pruning of CNNs at Initialization" (arXiv 2203.02549) counts its networks a little differently, so a budget
is the share that the paper keeps of its own dense figures. Nothing is trained: the table says which widths PreCrop
chooses, what they cost, and how near whole widths come to the optimum of the convex program.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torchvision.models import get_model

import fxprune as fp
from benchmarks.accuracy_records import write
from benchmarks.accuracy_table import PAGE
from fxprune.report import Report

HEADER = (
    "| network | paper: G | M | PreCrop: G | M | FLOPs, limit | parameters, limit | log density | of the optimum |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


class Case(NamedTuple):
    """A network of torchvision, and the paper's figures: 10^9 multiply-adds and 10^6 parameters, cropped and dense."""

    title: str
    name: str
    gigas: tuple[float, float]
    millions: tuple[float, float]

    @property
    def budget(self) -> fp.Budget:
        """The shares that the paper keeps."""
        return fp.Budget(flops=self.gigas[0] / self.gigas[1], params=self.millions[0] / self.millions[1])


CASES = (
    Case("ResNet-34", "resnet34", (2.73, 3.64), (11.09, 21.80)),
    Case("MobileNetV2", "mobilenet_v2", (0.26, 0.33), (2.33, 3.51)),
    Case("MobileNetV2", "mobilenet_v2", (0.21, 0.33), (1.85, 3.51)),
    Case("EfficientNet-B0", "efficientnet_b0", (0.30, 0.40), (3.67, 5.29)),
)


def report_of(case: Case) -> Report:
    """What PreCrop makes of a network as its constructor makes it."""
    torch.manual_seed(0)
    model = get_model(case.name, weights=None)
    return fp.precrop(model, torch.zeros(1, 3, 224, 224), budget=case.budget, verify=False).report


def table(found: Sequence[tuple[Case, Report]]) -> Iterator[str]:
    """A line for each case, and below them the widths of all groups."""
    yield HEADER
    yield from (_line(case, report) for case, report in found)
    yield from ("", "Widths, in the order of the network, as kept/original:", "")
    for case, report in found:
        widths = " ".join(f"{group.after}/{group.before}" for group in report.groups)
        yield f"- {case.title} at {case.gigas[0]} G: {widths}"
    yield from ("", f"Made by torch {torch.__version__}, with `python -m benchmarks.precrop_widths --write`.")


def _line(case: Case, report: Report) -> str:
    """A multiply-add is two FLOPs."""
    shares = [f"{100 * report.after[kind] / report.before[kind]:.1f} %" for kind in ("flops", "params")]
    limits = [f"{100 * few / many:.1f} %" for few, many in (case.gigas, case.millions)]
    cells = [
        case.title,
        f"{case.gigas[0]} of {case.gigas[1]}",
        f"{case.millions[0]} of {case.millions[1]:.2f}",
        f"{report.after['flops'] / 2e9:.3f} of {report.before['flops'] / 2e9:.3f}",
        f"{report.after['params'] / 1e6:.2f} of {report.before['params'] / 1e6:.2f}",
        *(f"{share}, {limit}" for share, limit in zip(shares, limits, strict=True)),
        f"{report.objective['whole widths']:.3f}",
        f"{report.objective['channels']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, and write it into docs/benchmarks.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    text = "\n".join(table([(case, report_of(case)) for case in CASES]))
    print(text)
    if options.write:
        write(PAGE, "precrop-widths", text)


if __name__ == "__main__":
    main()
