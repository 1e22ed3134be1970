"""Accuracy over the FLOPs that are kept, as docs/accuracy.svg: the same bytes from the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.accuracy_data import ROOT, SETTINGS
from benchmarks.accuracy_records import Record

PICTURE = ROOT / "docs" / "accuracy.svg"
LINES = {  # row: label, colour, marker
    "psp": ("fxprune psp", "#0b6e4f", "o"),
    "least-squares": ("fxprune, least squares alone", "#6fbf73", "s"),
    "retrained": ("Torch-Pruning L1, retrained with labels", "#d17a22", "^"),
    "tp-l1-bn": ("Torch-Pruning L1 + BatchNorm", "#8a4f9e", "v"),
}
WIDTH, HEIGHT, COLUMNS = 4.2, 3.2, 3  # inches of a panel, and panels in a row
STYLE: Any = {
    "svg.hashsalt": "fxprune",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
UNDATED: dict[str, Any] = {"Date": None, "Creator": None}


def draw(records: Sequence[Record], picture: Path = PICTURE) -> None:
    """A panel for each network that has lines to show. Exits with one line where matplotlib is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("the plot needs matplotlib: pip install -e '.[bench]'") from error

    shown = networks(records)
    if not shown:
        return
    rows = -(-len(shown) // COLUMNS)
    columns = min(len(shown), COLUMNS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, network in zip(panels, shown, strict=False):
            _panel(panel, [found for found in records if found["network"] == network], SETTINGS[network].title)
        for panel in panels[len(shown) :]:
            panel.set_axis_off()
        labels = {
            label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(picture, format="svg", metadata=UNDATED)


def _panel(panel: Any, records: Sequence[Record], title: str) -> None:
    for found in records:
        if found["row"] == "dense":
            panel.axhline(found["top1"], color="#555555", linewidth=0.8, linestyle=":", label="dense")
    for row, (label, colour, marker) in LINES.items():
        points = curve(records, row)
        if points:
            shares, tops, errors = zip(*points, strict=True)
            panel.errorbar(shares, tops, errors, label=label, color=colour, marker=marker, markersize=4, capsize=2)
    panel.set(title=title, xlabel="FLOPs kept in percent", ylabel="top-1 in percent")
    panel.grid(alpha=0.3, linewidth=0.5)


def curve(records: Sequence[Record], row: str) -> list[tuple[float, float, float]]:
    """For each share: the FLOPs that are kept, the mean accuracy and its standard deviation over draws; in percent."""
    shares = sorted({found["share"] for found in records if found["row"] == row})
    points = []
    for share in shares:
        mine = [found for found in records if found["row"] == row and found["share"] == share]
        tops = [found["top1"] for found in mine]
        kept = 100 * mean(found["kept"] for found in mine)
        points.append((kept, mean(tops), stdev(tops) if len(tops) > 1 else 0.0))
    return points


def networks(records: Sequence[Record]) -> list[str]:
    """Those that have lines to show."""
    having = {found["network"] for found in records if found["row"] in LINES}
    return [name for name in SETTINGS if name in having]
