"""What a person sees while a command runs: progress bars on standard error, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich import progress as bars
from rich.console import Console

from fxprune.errors import FxpruneError
from fxprune.progress import Progress

INTERRUPTED = 130  # 128 + SIGINT, as shells expect
NOTHING = "nothing was written"


class Commands(click.Group):
    """A group of commands that turns a user's mistake into one line and exit 1, and Ctrl-C into one line and exit 130.

    A command that has left something behind raises KeyboardInterrupt anew, with what a person must know.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that `ctx` names."""
        try:
            return super().invoke(ctx)
        except FxpruneError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as interruption:
            click.echo(f"interrupted: {str(interruption) or NOTHING}", err=True)
            ctx.exit(INTERRUPTED)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A callable `progress(stage, done, total, error)`: a bar for each stage, where standard error is a terminal.

    error: the current error of the stage, shown behind its bar until another one comes; None where there is no new one.
    """
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[error]}"),
    )
    tasks: dict[str, bars.TaskID] = {}
    errors: dict[str, str] = {}
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as display:

        def progress(stage: str, done: int, total: int, error: float | None = None) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=total, error="")
            if error is not None:
                errors[stage] = f"error {error:.3g}"
            display.update(tasks[stage], completed=done, total=total, error=errors.get(stage, ""))

        yield progress


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show that work of unknown length goes on, where standard error is a terminal."""
    with Console(stderr=True).status(what):
        yield


def note(text: str) -> None:
    """Tell a person something without mixing it into the output."""
    click.echo(f"note: {text}", err=True)
