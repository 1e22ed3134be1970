"""`fxprune demo`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from fxprune.cli.console import progress_bars
from fxprune.cli.results import check_writable
from fxprune.demo import Outcome, run
from fxprune.demo.run import BATCH


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("fxprune-demo"), help="Folder for the result.")
def demo(out: Path) -> None:
    """Prune a small digits network to half its FLOPs: needs no files and no network."""
    check_writable(out)
    console = Console()
    console.print("A residual network, trained on scikit-learn's digits, loses half of its FLOPs.\n")
    with progress_bars() as progress:
        outcome = run(out, progress)
    show(outcome, console)


def show(outcome: Outcome, console: Console) -> None:
    """Print what the demo measured."""
    report = outcome.report
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("", "accuracy", "FLOPs", "parameters", f"batch of {BATCH}"):
        table.add_column(heading, justify="right" if heading else "left")
    costs = [(f"{cost['flops']:,}", f"{cost['params']:,}") for cost in (report.before, report.after)]
    table.add_row("trained", f"{outcome.dense:.2f} %", *costs[0], f"{outcome.dense_milliseconds:.1f} ms")
    table.add_row("channels removed", f"{outcome.shrunk:.2f} %", *costs[1], "")
    table.add_row(
        "reconstructed",
        f"[bold green]{outcome.pruned:.2f} %[/]",
        *costs[1],
        f"{outcome.pruned_milliseconds:.1f} ms",
    )
    console.print(table)
    ratio = outcome.dense_milliseconds / outcome.pruned_milliseconds
    seconds = sum(report.seconds.values())
    console.print(f"\n{ratio:.2f} times as fast here, pruned in {seconds:.1f} s; {outcome.test_images} test images")
    console.print(str(report.verification), highlight=False, soft_wrap=True)
    console.print(f"the network as plain PyTorch code: {outcome.out / 'model.py'}", highlight=False, soft_wrap=True)
