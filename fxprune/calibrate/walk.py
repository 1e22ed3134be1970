"""A walk over two graphs with the same node names, side by side, stage by stage, over all calibration batches.

Between stages only the values that later nodes need are kept: in memory up to a cap, beyond it in temporary files.
Where they take more room than those of an earlier stage, and are computed sooner than stored, they are computed again.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calibrate.evaluate import Evaluator, Values, to_device
from fxprune.calibrate.images import Calibration

GROWTH = 2.0  # above the cap, values that are not much larger than those kept already are kept
DISK = 2e8  # bytes a second that are written and read again: values that take longer to compute are kept as well


class Walk:
    """Runs a dense and a pruned graph over the calibration batches. A context manager: leaving it removes the files.

    memory: bytes of values to keep in memory; what is beyond goes to temporary files.
    """

    def __init__(
        self, dense: fx.GraphModule, pruned: fx.GraphModule, calibration: Calibration, memory: int = 1 << 30
    ) -> None:
        self.dense, self.pruned = Evaluator(dense), Evaluator(pruned)
        self._calibration, self._memory = calibration, memory
        self._kept: list[_Kept | None] = [None] * len(calibration.batches)  # None: no stage has been visited
        self._folder: Path | None = None

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def stage(self, at: str, dense: Sequence[str], pruned: Sequence[str]) -> Iterator[tuple[Values, Values]]:
        """For each batch, values of the dense and of the pruned graph, computed without node `at` of the pruned one.

        Stages are visited in the order of the graph, each to its end.
        """
        ahead_dense = self.dense.alive_at(at, inclusive=True)
        ahead_pruned = self.pruned.alive_at(at, inclusive=False)
        advance: bool | None = None
        for index, kept in enumerate(self._kept):
            have_dense, have_pruned = self._load(index)
            started = time.perf_counter()
            values_dense = self.dense([*dense, *(ahead_dense if advance is not False else ())], have_dense)
            values_pruned = self.pruned([*pruned, *(ahead_pruned if advance is not False else ())], have_pruned)
            seconds = time.perf_counter() - started
            yield values_dense, values_pruned
            new_dense = {name: values_dense[name] for name in ahead_dense if advance is not False}
            new_pruned = {name: values_pruned[name] for name in ahead_pruned if advance is not False}
            if advance is None:
                before = self._calibration.batch_bytes() if kept is None else kept.size
                advance = self._worth_keeping(_bytes((new_dense, new_pruned)), before, seconds)
            if advance:
                if kept is not None:
                    kept.discard()
                self._kept[index] = self._keep(index, new_dense, new_pruned)

    def _load(self, index: int) -> tuple[Values, Values]:
        """The values that are kept of a batch; at first, the batch itself."""
        kept = self._kept[index]
        if kept is not None:
            return kept.load()
        batch = self._calibration.batches[index]
        return to_device(self.dense.gm, batch), to_device(self.pruned.gm, batch)

    def _worth_keeping(self, size: int, before: int, seconds: float) -> bool:
        """Whether to keep values of `size` bytes a batch, now that `before` are kept, or to compute them again, which
        takes `seconds` a batch from those."""
        total = size * len(self._kept)
        if total <= self._memory or size <= GROWTH * before:
            return True
        return seconds > size / DISK and 2 * total < shutil.disk_usage(tempfile.gettempdir()).free

    def _keep(self, index: int, dense: Values, pruned: Values) -> _Kept:
        room = self._memory - sum(kept.size for kept in self._kept if kept is not None and kept.path is None)
        kept = _Kept(dense, pruned)
        if kept.size > room:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="fxprune-"))
            kept.spill(self._folder / f"{index}.pt")
        return kept


class _Kept:
    """The values of one batch between two stages, in memory or in a file."""

    def __init__(self, dense: Values, pruned: Values) -> None:
        self._values: tuple[Values, Values] | None = (dense, pruned)
        self.size = _bytes((dense, pruned))
        self.path: Path | None = None

    def load(self) -> tuple[Values, Values]:
        if self.path is None:
            assert self._values is not None
            return self._values
        values: tuple[Values, Values] = torch.load(self.path, weights_only=True, mmap=True)
        return values

    def spill(self, path: Path) -> None:
        fresh = path.with_suffix(".new")  # the old file may still be mapped
        torch.save(self._values, fresh)
        fresh.replace(path)
        self.path, self._values = path, None

    def discard(self) -> None:
        self._values, self.size = None, 0


def _bytes(values: Any) -> int:
    """The size of all tensors in `values`; one that shares memory with another is counted with it."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
