"""Two networks in two columns on a terminal; plain text or JSON elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fxprune.diff import Diff, Line

_NARROWEST = 100  # columns of a terminal; below, two columns of code do not fit


def show_diff(diff: Diff, titles: tuple[str, str], as_json: bool) -> None:
    """Print what differs: in colours and two columns where standard output is a wide terminal."""
    console = Console()
    if as_json:
        click.echo(json.dumps({"before": titles[0], "after": titles[1], **diff.to_dict()}, indent=1))
    elif console.is_terminal and console.width >= _NARROWEST:
        console.print(columns(diff, titles))
    else:
        click.echo(str(diff))


def columns(diff: Diff, titles: tuple[str, str]) -> Table:
    """The modules that changed, then all of the code, as a table of two columns."""
    table = Table(show_edge=False, show_lines=False, pad_edge=False)
    for title in titles:
        table.add_column(title, ratio=1)
    for line in diff.modules:
        if line.changed:
            table.add_row(*_cells(line))
    table.add_section()
    for line in diff.code:
        table.add_row(*_cells(line))
    return table


def _cells(line: Line) -> Sequence[Text]:
    """Both sides of a line; what differs in red and green."""
    head = f"{line.name}: " if line.name else ""
    if not line.changed:
        return [Text(f"{head}{line.before}", style="dim")] * 2
    cells = []
    for text, pieces, colour in zip((line.before, line.after), line.parts, ("red", "green"), strict=True):
        marked = [(piece, f"bold {colour}" if differs else "") for piece, differs in pieces]
        cells.append(Text("") if text is None else Text.assemble(head, *marked))
    return cells
