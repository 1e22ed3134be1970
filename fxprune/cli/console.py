"""What a person sees while a command runs: progress bars on standard error, and errors as one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fxprune.errors import FxpruneError

INTERRUPTED = 130  # 128 + SIGINT, as shells expect

ProgressCall = Callable[[str, int, int], None]


class Commands(click.Group):
    """A group of commands that turns a user's mistake into one line and exit 1, and Ctrl-C into exit 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except FxpruneError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted: nothing was written", err=True)
            ctx.exit(INTERRUPTED)


@contextmanager
def progress_bars() -> Iterator[ProgressCall]:
    """A callable `progress(stage, done, total)` that draws a bar for each stage, where standard error is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = display.add_task(stage, total=total)
            display.update(bars[stage], completed=done, total=total)

        yield progress


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that work of unknown length goes on, where standard error is a terminal."""
    with Console(stderr=True).status(what):
        yield


def note(text: str) -> None:
    """Tell a person something without mixing it into the output."""
    click.echo(f"note: {text}", err=True)
