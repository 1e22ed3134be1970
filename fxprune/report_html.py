"""The report as one self-contained HTML page, from the plain data of `Report.to_dict`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from math import ceil, floor, inf, isfinite, log10
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 760, 280, 52, 34, 24  # of the plot and its margins, in pixels
DECADES = 4  # below the largest error that the plot shows: what is smaller stands at its lower edge

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #6b7686; --line: #e3e7ed; --page: #fff; --bar: #2f6fde;
  --rest: #dfe6f1; --good: #1a7f4b; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #97a3b4; --line: #2b323d; --page: #14181f;
  --bar: #6c9cf5; --rest: #2a3341; --good: #5fce94; --bad: #ff8a80 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 3rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem } .soft { color: var(--soft) }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .8rem .3rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600; color: var(--soft) } .number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap } .bar { width: 10rem; height: .7rem; margin-top: .4rem; border-radius: .35rem;
  background: var(--rest); overflow: hidden } .bar div { height: 100%; background: var(--bar) }
svg { width: 100%; height: auto; margin: .4rem 0 1rem } svg text { fill: var(--soft); font-size: 12px }
.grid { stroke: var(--line) } .shrunk { fill: var(--page); stroke: var(--soft); stroke-width: 1.5 }
.solved { fill: var(--bar) } .better { stroke: var(--bar); opacity: .45 } .worse { stroke: var(--bad) }
.good { color: var(--good) } .bad { color: var(--bad) } summary { cursor: pointer } li { margin: .2rem 0 }
""".strip()


def page(data: Mapping[str, Any]) -> str:
    """The whole page. Every text that comes from the model is escaped."""
    sections = [
        _proof(data["verification"]),
        _section("Warnings", _items(data["weak"])),
        _section("Cost", _costs(data["cost"])),
        _section("Notes", _items(data["notes"])),
        _section("Channel groups", _groups(data["groups"])),
        _section("Held-out error of the outputs", _stages(data["stages"], data["max_error"])),
        _section("Errors of the layer outputs", _plot(data["layers"]) + _layers(data["layers"])),
        _section("Held axes", _held(data["held"])),
        _section("Seconds", _seconds(data["seconds"])),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>fxprune report</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>fxprune report</h1>\n"
        f'<p class="soft">recipe {escape(data["recipe"])}, seed {data["seed"]}</p>\n'
        + "".join(sections)
        + "</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    """A titled part of the page; nothing where there is nothing to say."""
    return f"<h2>{title}</h2>\n{body}\n" if body else ""


def _proof(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return '<p class="soft">Not verified: verification was switched off.</p>\n'
    word = '<b class="good">Verified</b>' if proof["ok"] else '<b class="bad">Verification FAILED</b>'
    return f"<p>{word}: max error {proof['max_error']:.1e}, {escape(proof['method'])}</p>\n"


def _costs(cost: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(name),
            f"{item['before']:,}",
            f"{item['after']:,}",
            "" if item["limit"] is None else f"{floor(item['limit']):,}",
            *_kept(item["after"], item["before"]),
        ]
        for name, item in cost.items()
    ]
    return _table(["cost", "before", "after", "limit", "kept", ""], rows, numbers={1, 2, 3, 4})


def _groups(groups: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"<details><summary>{escape(item['name'])}</summary>{_items(item['axes'])}</details>",
            str(item["before"]),
            str(item["after"]),
            *_kept(item["after"], item["before"]),
        ]
        for item in groups
    ]
    return _table(["group", "units", "kept", "share", ""], rows, numbers={1, 2, 3})


def _stages(stages: Iterable[Mapping[str, Any]], max_error: float | None) -> str:
    rows = [[escape(item["stage"]), f"{item['before']:.4f}", f"{item['after']:.4f}"] for item in stages]
    if max_error is not None:
        rows.append(["at most", "", f"{max_error:.4f}"])
    return _table(["stage", "before", "after"], rows, numbers={1, 2})


def _layers(layers: Iterable[Mapping[str, Any]]) -> str:
    rows = [[escape(item["layer"]), f"{item['before']:.4f}", f"{item['after']:.4f}"] for item in layers]
    return _table(["layer", "shrunk", "reconstructed"], rows, numbers={1, 2})


def _plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Two marks for each layer on a logarithmic axis, joined by a line: its error before and after reconstruction."""
    if not layers:
        return ""
    low, high = _decades(value for item in layers for value in (item["before"], item["after"]))
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
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="layer-errors">',
        f'<title id="layer-errors">{title}</title>',
        *_grid(low, high, height),
        '<circle class="shrunk" cx="58" cy="12" r="4"/><text x="68" y="16">shrunk</text>',
        '<circle class="solved" cx="134" cy="12" r="4"/><text x="144" y="16">reconstructed</text>',
        f'<text x="{WIDTH}" y="16" text-anchor="end">squared error, relative to the original</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">first layer</text>',
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">last layer</text>',
    ]
    step = (WIDTH - LEFT) / len(layers)
    parts += [_marks(item, LEFT + step * position, step, height) for position, item in enumerate(layers)]
    return "\n".join([*parts, "</svg>\n"])


def _decades(errors: Iterable[float]) -> tuple[int, int]:
    """The powers of ten between which the axis runs."""
    exponents = [log10(error) for error in errors if 0 < error < inf] or [0.0]
    shown = [exponent for exponent in exponents if exponent > max(exponents) - DECADES]
    low, high = floor(min(shown)), ceil(max(shown))
    return low - (low == high), high


def _grid(low: int, high: int, height: Callable[[float], float]) -> Iterable[str]:
    """A line and a number at each power of ten, and between them where there are few."""
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    levels = [step * 10.0**exponent for exponent in range(low, high) for step in steps]
    for level in (*levels, 10.0**high):
        y = height(level)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level:g}</text>'


def _marks(item: Mapping[str, Any], left: float, width: float, height: Callable[[float], float]) -> str:
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


def _held(held: Mapping[str, str]) -> str:
    return _table(["axis", "reason"], [[escape(axis), escape(reason)] for axis, reason in held.items()])


def _seconds(seconds: Mapping[str, float]) -> str:
    return _table(["stage", "seconds"], [[escape(name), f"{time:.1f}"] for name, time in seconds.items()], numbers={1})


def _items(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _kept(after: int, before: int) -> tuple[str, str]:
    """The share as text and as a bar."""
    share = 100 * after / before if before else 100.0
    return f"{share:.1f} %", f'<div class="bar"><div style="width:{share:.1f}%"></div></div>'


def _table(heads: list[str], rows: list[list[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are already HTML; the columns of `numbers` are set to the right."""
    if not rows:
        return ""
    css = [' class="number"' if column in set(numbers) else "" for column in range(len(heads))]
    lines = ["<tr>" + "".join(f"<th{c}>{head}</th>" for c, head in zip(css, heads, strict=True)) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>" for row in rows
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>"
