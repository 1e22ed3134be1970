"""The command line: `fxprune prune`, `precrop`, `inspect`, `verify` and `demo`."""

from __future__ import annotations

import click

from fxprune.cli.console import Commands
from fxprune.cli.demo import demo
from fxprune.cli.inspect import inspect
from fxprune.cli.precrop import precrop
from fxprune.cli.prune import prune
from fxprune.cli.verify import verify

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="fxprune")
def main() -> None:
    """Make a trained network smaller without retraining it, or set the widths of one before it is trained.

    SPEC is torchvision:NAME, timm:NAME, path/to/file.py:factory (a function that returns an nn.Module) or a .pt2 file.
    """


for command in (prune, precrop, inspect, verify, demo):
    main.add_command(command)
