"""Gathering what a loader yields, in memory that does not grow with the number of images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

MEMORY = 1 << 30  # bytes of images to keep in memory; more goes to a file that the system pages in and out


def gathered(batches: Iterable[tuple[Tensor, ...]], memory: int | None = None) -> list[Tensor]:
    """The columns of the batches, each put together along axis 0. A lone batch is taken as it is, without a copy.

    memory: bytes beyond which the images go to a temporary file, which has no name once all are there, and is removed
        where the batches end in an error.
    """
    columns: list[_Column] = []
    try:
        for batch in batches:
            columns = columns or [_Column(MEMORY if memory is None else memory) for _ in batch]
            for column, tensor in zip(columns, batch, strict=True):
                column.add(tensor.detach().cpu())
        return [column.tensor() for column in columns]
    finally:
        for column in columns:
            column.discard()


class _Column:
    """Rows that arrive piece by piece."""

    def __init__(self, memory: int) -> None:
        self._memory, self._rows = memory, 0
        self._pieces: list[Tensor] = []
        self._path: Path | None = None

    def add(self, piece: Tensor) -> None:
        """Take in some rows."""
        self._pieces.append(piece)
        self._rows += len(piece)
        self._like = piece[:0]
        waiting = sum(tensor.numel() * tensor.element_size() for tensor in self._pieces)
        if len(self._pieces) > 1 and waiting > self._memory:
            self._write()

    def tensor(self) -> Tensor:
        """All rows."""
        if self._path is None:
            return self._pieces[0] if len(self._pieces) == 1 else torch.cat(self._pieces)
        self._write()
        size = self._path.stat().st_size
        mapped = torch.from_file(str(self._path), shared=True, size=size, dtype=torch.uint8)
        self.discard()  # the mapping keeps the data until the tensor is gone
        return mapped.view(self._like.dtype).reshape(self._rows, *self._like.shape[1:])

    def discard(self) -> None:
        """Remove the file, if there is one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._path is None:
            with tempfile.NamedTemporaryFile(prefix="fxprune-", delete=False) as file:
                self._path = Path(file.name)
        with self._path.open("ab") as file:
            for piece in self._pieces:
                piece.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)
        self._pieces.clear()
