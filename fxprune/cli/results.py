"""What a command leaves behind: a folder, a web page, and what it prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

import fxprune as fp
from fxprune.codegen import refuse_foreign
from fxprune.errors import OutputError
from fxprune.files import write_whole


def write(result: fp.Result, out: Path, html: Path | None) -> None:
    """Write the network to the folder `out`, and its report as a page to `html`. Raises OutputError."""
    result.save(out)
    if html is not None:
        _write_page(html, result.to_html())


def show(report: fp.Report, out: Path, as_json: bool) -> None:
    """Print the report, and where the network is."""
    if as_json:
        click.echo(json.dumps({**report.to_dict(), "out": str(out)}, indent=1))
    else:
        click.echo(f"{report}\nwritten to {out}")


def _write_page(path: Path, text: str) -> None:
    """Wholly or not at all. Raises OutputError where it cannot be written."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(out: Path, html: Path | None = None) -> None:
    """Raises OutputError where a folder at `out` cannot be made, written or replaced, or a page in the folder of
    `html`, before any work is spent."""
    if html is not None and not os.access(html.absolute().parent, os.W_OK | os.X_OK):
        why = "no permission in" if html.absolute().parent.is_dir() else "there is no folder"
        raise OutputError(f"cannot write {html}: {why} {html.parent}")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise OutputError(f"{out} cannot be written: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: no permission in {existing}")
    refuse_foreign(out)
