"""What a person sees while a command runs: progress bars on standard error, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich import progress as bars
from rich.console import Console

from fxprune.errors import FxpruneError
from fxprune.passes.choose import Progress

INTERRUPTED = 130  # 128 + SIGINT, as shells expect


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
def progress_bars() -> Iterator[Progress]:
    """A callable `progress(stage, done, total)` that draws a bar for each stage, where standard error is a terminal."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total)
            display.update(tasks[stage], completed=done, total=total)

        yield progress


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that work of unknown length goes on, where standard error is a terminal."""
    with Console(stderr=True).status(what):
        yield


def note(text: str) -> None:
    """Tell a person something without mixing it into the output."""
    click.echo(f"note: {text}", err=True)
