"""Timing: what a user says of how a latency is to be measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fxprune.errors import BudgetError

TABLE = "latency.json"


@dataclass(frozen=True)
class Timing:
    """How latencies are measured: on the device of the network, with the threads that torch uses now.

    batch: inputs of one forward, in which the example's is repeated; 1 is a request at a time. A network that bakes its
        batch in is timed with that.
    compiled: as `torch.compile` runs the network, in which what lies between convolutions and matrix products is fused;
        else call by call.
    table: the file in which measured times are kept, so that no call is measured twice; by default `latency.json` in
        the folder that FXPRUNE_CACHE names, or in `fxprune` in the user's folder for caches. Delete it to measure anew.

    Raises BudgetError where one of them is of another kind.
    """

    batch: int = 1
    compiled: bool = False
    table: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise BudgetError(f"batch={self.batch!r} of a Timing must be a whole number, at least 1")
        if not isinstance(self.compiled, bool):
            raise BudgetError(f"compiled={self.compiled!r} of a Timing must be True or False")

    @property
    def path(self) -> Path:
        """Where the table is."""
        return Path(self.table) if self.table is not None else _cache() / TABLE

    def __str__(self) -> str:
        return f"batch {self.batch}, {'compiled' if self.compiled else 'eager'}"


def _cache() -> Path:
    if named := os.environ.get("FXPRUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxprune"
