"""The charts of the report as inline SVG, from the plain data of `Report.to_dict`. Every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, inf, isfinite, log10
from typing import Any, NamedTuple

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 280, 64, 34, 24  # of a chart and its margins, in pixels
DECADES = 4  # below the largest error that the plot shows: what is smaller stands at its lower edge
TICKS = 5  # at most so many steps of a linear axis
THICKEST = 18.0  # pixels of a bar at most
LINE, LETTER, LETTERS = 14.0, 6.6, 32  # pixels of a line and of a letter of the labels, and letters of one at most

Height = Callable[[float], float]


def density_chart(densities: Sequence[Mapping[str, Any]]) -> str:
    """Two bars for each layer: its density where single weights may go, and where channels go."""
    bars = [
        Bars(
            short_name(item["layer"], LETTERS),
            item["best"],
            item["kept"],
            f"{item['layer']}: {item['kept']:.3f} of {item['weights']:,} weights"
            + ("" if item["best"] is None else f", {item['best']:.3f} if single weights may go"),
        )
        for item in densities
    ]
    title = f"Densities of {len(bars)} layers on a linear axis: single weights and channels"
    return _bar_chart(
        "layer-densities", title, ("single weights", "channels"), "share of the weights of the original", bars, line=1.0
    )


def width_chart(groups: Sequence[Mapping[str, Any]]) -> str:
    """Two bars for each group: its units before and after."""
    bars = [
        Bars(
            short_name(item["name"], LETTERS),
            item["before"],
            item["after"],
            f"{item['name']}: {item['before']:,} units before, {item['after']:,} after",
        )
        for item in groups
    ]
    title = f"Widths of {len(bars)} channel groups on a linear axis: before and after"
    return _bar_chart("group-widths", title, ("before", "after"), "units", bars)


def short_name(name: str, longest: int) -> str:
    """A parameter's name, short and still unlike those of other layers.

    Where it is longer than `longest` letters, from the first number on; where that is longer too, only its first and
    last part and those with a number.
    """
    short = re.sub(r"\.weight(?=$|#)", "", name)
    if len(short) <= longest:
        return short
    parts = short.split(".")
    first = next((place for place, part in enumerate(parts) if re.search(r"\d", part)), 0)
    for start in (max(0, first - parts[first].isdigit()), first):  # a bare number says more with what it counts
        if len(".".join(parts[start:])) <= longest:
            return ".".join(parts[start:])
    inner = [part if re.search(r"\d", part) else "" for part in parts[first + 1 : -1]]
    return re.sub(r"\.{2,}", "\u2026", ".".join([parts[first], *inner, *parts[first + 1 :][-1:]]))


def error_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Two marks for each layer on a logarithmic axis, joined by a line: its error before and after reconstruction."""
    if not layers:
        return ""
    errors = [value for item in layers for value in (item["before"], item["after"])]
    low, high = _decades(errors)
    span = HEIGHT - TOP - BOTTOM

    def height(error: float) -> float:
        exponent = low if error <= 0 else min(max(log10(error), low), high) if isfinite(error) else high
        return TOP + span * (high - exponent) / (high - low)

    better = sum(item["after"] < item["before"] for item in layers)
    title = (
        f"Errors of the outputs of {len(layers)} layers on a logarithmic axis, shrunk and reconstructed: "
        f"{better} of them fell"
    )
    parts = [
        *_head("layer-errors", title, HEIGHT),
        *_grid(_powers(low, high), height, below=any(value < 10.0**low for value in errors)),
        f'<circle class="shrunk" cx="{LEFT + 6}" cy="12" r="4"/><text x="{LEFT + 16}" y="16">shrunk</text>',
        f'<circle class="solved" cx="{LEFT + 82}" cy="12" r="4"/><text x="{LEFT + 92}" y="16">reconstructed</text>',
        f'<text x="{WIDTH}" y="16" text-anchor="end">squared error, relative to the original</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">first layer</text>',
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">last layer</text>',
    ]
    step = (WIDTH - LEFT) / len(layers)
    parts += [_marks(item, LEFT + step * position, step, height) for position, item in enumerate(layers)]
    return "\n".join([*parts, "</svg>\n"])


class Bars(NamedTuple):
    """Two bars side by side: the label below them, their heights (the first may be missing), and all that they say."""

    label: str
    first: float | None
    second: float
    text: str


def _bar_chart(
    key: str, title: str, legend: tuple[str, str], unit: str, bars: Sequence[Bars], line: float | None = None
) -> str:
    """Two bars for each entry on a linear axis from 0.

    key: identifies the chart on the page. line: a height that is marked across the chart.
    """
    if not bars:
        return ""
    levels = _steps(max(line or 0.0, *(value for item in bars for value in (item.first or 0.0, item.second))))
    step = (WIDTH - LEFT) / len(bars)
    labels, bottom = _labels([item.label for item in bars], step)
    foot = HEIGHT - BOTTOM

    def height(value: float) -> float:
        return foot - (foot - TOP) * value / levels[-1]

    beside = LEFT + 30 + ceil(LETTER * len(legend[0]))
    parts = [
        *_head(key, title, foot + bottom),
        *_grid(levels, height),
        f'<rect class="first" x="{LEFT}" y="7" width="10" height="10"/><text x="{LEFT + 16}" y="16">{legend[0]}</text>',
        f'<rect class="second" x="{beside}" y="7" width="10" height="10"/>',
        f'<text x="{beside + 16}" y="16">{legend[1]}</text>',
        f'<text x="{WIDTH}" y="16" text-anchor="end">{unit}</text>',
        *(_pair(item, LEFT + step * position, step, height) for position, item in enumerate(bars)),
        *labels,
    ]
    if line is not None:
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH}" y1="{height(line):.1f}" y2="{height(line):.1f}"/>')
    return "\n".join([*parts, "</svg>\n"])


def _head(key: str, title: str, height: float) -> tuple[str, str]:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{key}">',
        f'<title id="{key}">{escape(title)}</title>',
    )


def _pair(item: Bars, left: float, width: float, height: Height) -> str:
    """The bars of one entry: what they say shows wherever the pointer is in their column."""
    thick, foot = min(THICKEST, 0.4 * width), height(0.0)
    center = left + width / 2
    bars = "".join(
        f'<rect class="{css}" x="{x:.2f}" y="{height(value):.1f}" width="{thick:.2f}" '
        f'height="{foot - height(value):.1f}"/>'
        for css, x, value in (("first", center - thick, item.first), ("second", center, item.second))
        if value is not None
    )
    return (
        f"<g><title>{escape(item.text)}</title>"
        f'<rect x="{left:.2f}" y="{TOP}" width="{width:.2f}" height="{foot - TOP:.1f}" fill="none" '
        f'pointer-events="all"/>{bars}</g>'
    )


def _labels(texts: Sequence[str], step: float) -> tuple[list[str], float]:
    """The labels below columns of width `step`, and the pixels that they need: level where there is room for all, else
    upright, and then only every second, third ... one where they would touch."""
    shown = [text if len(text) <= LETTERS else f"…{text[1 - LETTERS :]}" for text in texts]
    longest = LETTER * max(map(len, shown))
    top, foot = HEIGHT - BOTTOM, []
    upright = longest + 8 > step
    for position in range(0, len(shown), max(1, ceil(LINE / step)) if upright else 1):
        x, text = LEFT + step * (position + 0.5), escape(shown[position])
        if upright:
            foot.append(
                f'<text class="label" text-anchor="end" transform="translate({x + 4:.1f} {top + 8}) rotate(-90)">'
                f"{text}</text>"
            )
        else:
            foot.append(f'<text class="label" text-anchor="middle" x="{x:.1f}" y="{top + 18}">{text}</text>')
    return foot, ceil(longest) + 12 if upright else BOTTOM


def _steps(most: float) -> list[float]:
    """Numbers from 0 to the first that is not below `most`, in steps of 1, 2 or 5 times a power of ten."""
    most = most or 1.0
    power = 10.0 ** floor(log10(most / TICKS))
    step = next(step for factor in (1, 2, 5, 10) if most <= TICKS * (step := factor * power))
    return [step * position for position in range(ceil(most / step - 1e-9) + 1)]


def _decades(errors: Iterable[float]) -> tuple[int, int]:
    """The powers of ten between which the axis runs."""
    exponents = [log10(error) for error in errors if 0 < error < inf] or [0.0]
    shown = [exponent for exponent in exponents if exponent > max(exponents) - DECADES]
    low, high = floor(min(shown)), ceil(max(shown))
    return low - (low == high), high


def _powers(low: int, high: int) -> list[float]:
    """The powers of ten, and numbers between them where there are few."""
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    return [*(step * 10.0**exponent for exponent in range(low, high) for step in steps), 10.0**high]


def _grid(levels: Sequence[float], height: Height, below: bool = False) -> Iterator[str]:
    """A line and a number at each level; below: whether the lowest also stands for what is less."""
    for level in levels:
        y = height(level)
        sign = "\u2264 " if below and level == levels[0] else ""
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{sign}{level:g}</text>'


def _marks(item: Mapping[str, Any], left: float, width: float, height: Height) -> str:
    """One layer: its name shows wherever the pointer is in its column."""
    center, radius = left + width / 2, min(4.0, 0.4 * width)
    before, after = height(item["before"]), height(item["after"])
    trend = "better" if item["after"] <= item["before"] else "worse"
    text = f"{item['layer']}: {item['before']:.4g} shrunk, {item['after']:.4g} reconstructed"
    return (
        f"<g><title>{escape(text)}</title>"
        f'<rect x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="none" '
        'pointer-events="all"/>'
        f'<line class="{trend}" x1="{center:.1f}" x2="{center:.1f}" y1="{before:.1f}" y2="{after:.1f}" '
        f'stroke-width="{min(2.0, radius):.1f}"/>'
        f'<circle class="shrunk" cx="{center:.1f}" cy="{before:.1f}" r="{radius:.1f}"/>'
        f'<circle class="solved" cx="{center:.1f}" cy="{after:.1f}" r="{radius:.1f}"/></g>'
    )
