"""The report as one self-contained HTML page, from the plain data of `Report.to_dict`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import floor
from typing import Any

from fxprune.report_charts import density_chart, error_plot, width_chart
from fxprune.report_held import held_axes

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6878; --line: #e3e7ed; --page: #fff; --bar: #2f6fde;
  --rest: #dfe6f1; --pale: #9fb0c9; --good: #1a7f4b; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #97a3b4; --line: #2b323d; --page: #14181f;
  --bar: #6c9cf5; --rest: #2a3341; --pale: #5a6a82; --good: #5fce94; --bad: #ff8a80 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 3rem auto; padding: 0 1.5rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem } .soft { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 } a { color: var(--bar); text-decoration: none }
a:hover { text-decoration: underline } .scroll { overflow: auto; max-height: min(50rem, 80vh) }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal } td, th { padding: .3rem .8rem .3rem 0;
  text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
td:last-child, th:last-child { padding-right: 0 } th { font-weight: 600; color: var(--soft); position: sticky; top: 0;
  background: var(--page) } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.room { width: 11rem } .bar { height: .7rem; margin-top: .4rem; border-radius: .35rem;
  background: var(--rest) } .bar div { height: 100%; border-radius: inherit; background: var(--bar) }
.chart { width: 100%; min-width: 40rem; height: auto; margin: .4rem 0 1rem } svg { display: block; margin: auto }
.chart text { fill: var(--soft); font-size: 12px } .grid { stroke: var(--line) }
.shrunk { fill: var(--page); stroke: var(--soft); stroke-width: 1.5 } .chart .label { font-size: 11px }
.first { fill: var(--pale) } .second { fill: var(--bar) }
.mark { stroke: var(--ink); stroke-dasharray: 4 3 } .solved { fill: var(--bar) }
.better { stroke: var(--bar); opacity: .45 } .worse { stroke: var(--bad) }
.good { color: var(--good) } .bad { color: var(--bad) } summary { cursor: pointer } li { margin: .2rem 0 }
ul { padding-left: 1.2rem } .plain { list-style: none; margin: .1rem 0 .7rem }
code, pre { font: 12px/1.5 ui-monospace, monospace } code { color: var(--soft) } pre { white-space: pre-wrap }
@media (max-width: 40rem) { body { margin: 1.5rem auto; padding: 0 1rem } table { font-size: 13px }
  .room { display: none } td, th { padding-right: .6rem } }
@media print { .scroll { max-height: none; overflow: visible } }
""".strip()


def page(data: Mapping[str, Any], further: Mapping[str, str] | None = None) -> str:
    """The whole page. Every text that comes from the model is escaped.

    further: sections by title, of HTML that is escaped already.
    """
    sections = {
        "Warnings": _items(data["weak"]),
        "Cost": _costs(data["cost"]),
        "Notes": _items(data["notes"]),
        "Channel groups": _wide(width_chart(data["groups"])) + _groups(data["groups"]),
        "Layer densities": _densities(data["densities"], data["objective"]),
        "Held-out error of the outputs": _stages(data["stages"], data["max_error"]),
        "Errors of the layer outputs": _wide(error_plot(data["layers"])) + _layers(data["layers"]),
        "Held axes": held_axes(data["held"]),
        **{title: _wide(body) for title, body in (further or {}).items()},
        "Seconds": _seconds(data["seconds"]),
    }
    there = {title: body for title, body in sections.items() if body}
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>fxprune report</title>\n'
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>fxprune report</h1>\n"
        f'<p class="soft">recipe {escape(data["recipe"])}, seed {data["seed"]}</p>\n'
        + _proof(data["verification"], data["unverified"])
        + "<nav>"
        + " ".join(f'<a href="#{_mark(title)}">{escape(title)}</a>' for title in there)
        + "</nav>\n"
        + "".join(_section(title, body) for title, body in there.items())
        + "</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f'<section id="{_mark(title)}">\n<h2>{escape(title)}</h2>\n{body}\n</section>\n'


def _mark(title: str) -> str:
    """The name by which a link finds a section."""
    return "section-" + "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _wide(body: str) -> str:
    """A part that scrolls by itself where it is wider or longer than the window."""
    return f'<div class="scroll">\n{body}\n</div>\n' if body else ""


def _name(text: str) -> str:
    """A name, which may be broken after dots and underscores."""
    return re.sub("([._])", r"\1<wbr>", escape(text))


def _proof(proof: Mapping[str, Any] | None, unverified: str | None) -> str:
    if proof is None:
        return f'<p class="soft">Not verified: {escape(unverified or "")}.</p>\n'
    word = '<b class="good">Verified</b>' if proof["ok"] else '<b class="bad">Verification FAILED</b>'
    return f"<p>{word}: max error {proof['max_error']:.1e}, {escape(proof['method'])}</p>\n"


def _costs(cost: Mapping[str, Mapping[str, Any]]) -> str:
    bars = _shares((item["after"], item["before"]) for item in cost.values())
    rows = [
        [
            escape(name),
            f"{item['before']:,}",
            f"{item['after']:,}",
            *bar,
            "" if item["limit"] is None else f"{floor(item['limit']):,}",
        ]
        for (name, item), bar in zip(cost.items(), bars, strict=True)
    ]
    return _table(["cost", "before", "after", "kept", "", "limit"], rows, numbers={1, 2, 3, 5})


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    bars = _shares((item["after"], item["before"]) for item in groups)
    rows = [
        [
            f"<details><summary>{_name(item['name'])}</summary>{_items(item['axes'])}</details>",
            str(item["before"]),
            str(item["after"]),
            *bar,
        ]
        for item, bar in zip(groups, bars, strict=True)
    ]
    return _table(["group", "units", "kept", "share", ""], rows, numbers={1, 2, 3})


def _densities(densities: Sequence[Mapping[str, Any]], objective: Mapping[str, float]) -> str:
    rows = [
        [
            _name(item["layer"]),
            f"{item['weights']:,}",
            "" if item["best"] is None else f"{item['best']:.3f}",
            f"{item['kept']:.3f}",
        ]
        for item in densities
    ]
    told = f"<p>Objective (0 is the original): {escape(objective_text(objective))}</p>\n" if objective else ""
    heads = ["layer", "weights", "single weights", "channels"]
    return told + _wide(density_chart(densities)) + _table(heads, rows, numbers={1, 2, 3})


def objective_text(objective: Mapping[str, float]) -> str:
    """Each value with its name; none of them is a negative zero."""
    return ", ".join(f"{name} {round(value, 4) + 0.0:.4f}" for name, value in objective.items())


def _stages(stages: Iterable[Mapping[str, Any]], max_error: float | None) -> str:
    rows = [[escape(item["stage"]), f"{item['before']:.4f}", f"{item['after']:.4f}"] for item in stages]
    if max_error is not None:
        rows.append(["at most", "", f"{max_error:.4f}"])
    return _table(["stage", "before", "after"], rows, numbers={1, 2})


def _layers(layers: Iterable[Mapping[str, Any]]) -> str:
    rows = [[_name(item["layer"]), f"{item['before']:.4f}", f"{item['after']:.4f}"] for item in layers]
    return _table(["layer", "shrunk", "reconstructed"], rows, numbers={1, 2})


def _seconds(seconds: Mapping[str, float]) -> str:
    return _table(["stage", "seconds"], [[escape(name), f"{time:.1f}"] for name, time in seconds.items()], numbers={1})


def _items(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _shares(pairs: Iterable[tuple[int, int]]) -> list[tuple[str, str]]:
    """For each count after and before: the share as text and as a bar over a paler one, which is the original. The
    longest takes the whole room."""
    shares = [100 * after / before if before else 100.0 for after, before in pairs]
    whole = 100 * 100 / max([100.0, *shares])
    return [
        (
            f"{share:.1f} %",
            f'<div class="bar" style="width:{whole:.1f}%"><div style="width:{share:.1f}%"></div></div>',
        )
        for share in shares
    ]


def _table(heads: list[str], rows: list[list[str]], numbers: Iterable[int] = ()) -> str:
    """A table of cells that are already HTML; the columns of `numbers` are set right, one without a head has bars."""
    if not rows:
        return ""
    kinds = ["number" if column in set(numbers) else "" if head else "room" for column, head in enumerate(heads)]
    css = [f' class="{kind}"' if kind else "" for kind in kinds]
    lines = ["<tr>" + "".join(f"<th{c}>{head}</th>" for c, head in zip(css, heads, strict=True)) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>" for row in rows
    ]
    return _wide("<table>\n" + "\n".join(lines) + "\n</table>")
