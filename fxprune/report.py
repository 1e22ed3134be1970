"""The report: what was changed in a network, at what cost, how it was proven. As text, JSON and HTML."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.report_html import objective_text, page
from fxprune.types import Verification

WIDTH = 100  # columns of the plain text, so that it is the same on every terminal


class GroupChange(NamedTuple):
    """One channel group: its number of units before and after, and the parameter axes it runs along."""

    name: str
    before: int
    after: int
    axes: tuple[str, ...]


class LayerError(NamedTuple):
    """Relative squared error of a layer's output against the original: shrunk only, and after reconstruction."""

    layer: str
    before: float
    after: float


class LayerDensity(NamedTuple):
    """The weights of a layer in the original, and the shares of them that are left by two choices.

    best: where single weights, not channels, may go; None where no method said so.
    kept: where channels go; above 1 where the layer grew.
    """

    layer: str
    weights: int
    best: float | None
    kept: float


class StageError(NamedTuple):
    """Squared error of the network's outputs on held-out images, relative to their variance, around a stage."""

    stage: str
    before: float
    after: float


@dataclass(frozen=True)
class Report:
    """What pruning did. `str()` is a table of fixed width.

    before, after: cost of the original and of the result, by the name of the cost ("flops", "params", "memory").
    budget: the absolute limits that were set, by the same names.
    groups: every channel group, also those that kept all their units.
    held: each parameter axis that could not shrink, as text, with the reason.
    layers: errors of the layers that were reconstructed.
    verification: how the result compares with the oracle; None where it was not compared.
    unverified: why it was not.
    notes: what a user must know, one sentence each.
    seconds: time by stage, in the order in which the stages ran.
    stages: what each stage did to the held-out error, in the same order.
    max_error: the largest held-out error that was allowed; None where only costs were limited.
    weak: why the result may be worse than it could be, one sentence each.
    densities: what is left of the weights of each layer, where widths were set before training.
    objective: sums over the layers of the logs of such densities, and what else is 0 for the original, by name.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]
    budget: Mapping[str, float]
    groups: tuple[GroupChange, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[LayerError, ...] = ()
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    recipe: str = "fast"
    seed: int = 0
    stages: tuple[StageError, ...] = ()
    max_error: float | None = None
    weak: tuple[str, ...] = ()
    densities: tuple[LayerDensity, ...] = ()
    objective: Mapping[str, float] = field(default_factory=dict)
    unverified: str = "verification was switched off"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, numbers and strings."""
        proof = self.verification
        return {
            "version": 1,
            "recipe": self.recipe,
            "seed": self.seed,
            "cost": {
                name: {"before": before, "after": self.after[name], "limit": self.budget.get(name)}
                for name, before in self.before.items()
            },
            "groups": [{**group._asdict(), "axes": list(group.axes)} for group in self.groups],
            "densities": [density._asdict() for density in self.densities],
            "objective": dict(self.objective),
            "held": dict(self.held),
            "stages": [stage._asdict() for stage in self.stages],
            "max_error": self.max_error,
            "layers": [layer._asdict() for layer in self.layers],
            "verification": proof
            and {
                "ok": proof.ok,
                "max_error": proof.max_error,
                "tolerance": proof.tolerance,
                "method": proof.method,
                "outputs": list(proof.outputs),
            },
            "unverified": None if proof else self.unverified,
            "weak": list(self.weak),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def to_html(self) -> str:
        """One self-contained HTML page: no scripts, no requests to anywhere."""
        return page(self.to_dict())

    def __rich__(self) -> RenderableType:
        return Group(*self._parts())

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, legacy_windows=False, _environ={})
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")

    def _parts(self) -> Iterator[RenderableType]:
        yield Text(f"fxprune report: recipe {self.recipe}, seed {self.seed}")
        yield Text()
        yield self._costs()
        for table in (self._groups(), self._densities(), self._stages(), self._layers()):
            if table.row_count:
                yield Text()
                yield table
        yield Text()
        if self.objective:
            yield Text(f"objective (0 is the original): {objective_text(self.objective)}")
        yield from self._held()
        yield from (Text(f"warning: {warning}") for warning in self.weak)
        yield from (Text(f"note: {note}") for note in self.notes)
        yield Text(str(self.verification) if self.verification else f"not verified: {self.unverified}")
        if self.seconds:
            stages = ", ".join(f"{stage} {time:.1f}" for stage, time in self.seconds.items())
            yield Text(f"{sum(self.seconds.values()):.1f} s: {stages}")

    def _costs(self) -> Table:
        table = _table("cost", "before", "after", "kept", "limit")
        for name, before in self.before.items():
            after = self.after[name]
            limit = f"{floor(self.budget[name]):,}" if name in self.budget else ""
            table.add_row(Text(name), f"{before:,}", f"{after:,}", _share(after, before), limit)
        return table

    def _groups(self) -> Table:
        table = _table("group", "units", "kept", "share", "axes")
        for name, before, after, axes in self.groups:
            table.add_row(Text(name), str(before), str(after), _share(after, before), str(len(axes)))
        return table

    def _densities(self) -> Table:
        table = _table("layer density", "weights", "single weights", "channels")
        for layer, weights, best, kept in self.densities:
            table.add_row(Text(layer), f"{weights:,}", "" if best is None else f"{best:.3f}", f"{kept:.3f}")
        return table

    def _stages(self) -> Table:
        table = _table("held-out error", "before", "after")
        for stage, before, after in self.stages:
            table.add_row(Text(stage), f"{before:.4f}", f"{after:.4f}")
        if self.max_error is not None:
            table.add_row("at most", "", f"{self.max_error:.4f}")
        return table

    def _layers(self) -> Table:
        table = _table("layer output error", "shrunk", "reconstructed")
        for layer, before, after in self.layers:
            table.add_row(Text(layer), f"{before:.4f}", f"{after:.4f}")
        return table

    def _held(self) -> Iterator[Text]:
        """One line for each kind of reason: what stands before the name of the node. The whole is in `held`."""
        kinds: dict[str, dict[str, list[str]]] = {}
        for axis, reason in self.held.items():
            kinds.setdefault(reason.split("`")[0], {}).setdefault(reason, []).append(axis)
        for reasons in kinds.values():
            reason, axes = next(iter(reasons.items()))
            others = sum(map(len, reasons.values())) - len(axes)
            more = f", and {others} more axes like these" if others else ""
            yield Text(f"held: {', '.join(axes)}: {reason}{more}")


def _table(first: str, *others: str) -> Table:
    """A table without lines down the columns: names to the left, which fold rather than being cut; figures right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _share(after: float, before: float) -> str:
    return f"{100 * after / before:.1f} %" if before else ""
