"""Gathering: the same tensors from memory and from a file, and no file left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fxprune.calibrate.gather import gathered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
@pytest.mark.parametrize("memory", [0, 100, 1 << 20])
def test_pieces_come_back_as_one(
    dtype: torch.dtype, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pieces = [(torch.randn(rows, 2, 3).mul(50).to(dtype), torch.arange(rows)) for rows in (3, 1, 4)]
    images, indices = gathered(iter(pieces), memory)
    assert torch.equal(images, torch.cat([image for image, _ in pieces]))
    assert torch.equal(indices, torch.cat([index for _, index in pieces]))
    assert not list(tmp_path.iterdir())


def test_a_lone_tensor_is_not_copied() -> None:
    images = torch.randn(5, 3)
    assert gathered([(images,)], 0)[0] is not None
    assert gathered([(images,)], 0)[0].data_ptr() == images.data_ptr()


def test_nothing_gives_nothing() -> None:
    assert gathered([]) == []


def test_batches_that_end_in_an_error_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = list[Path]()

    def failing() -> Iterator[tuple[torch.Tensor, ...]]:
        for _ in range(3):
            yield (torch.zeros(5, 3),)
        seen.extend(tmp_path.iterdir())
        raise OSError("the next image is broken")

    with pytest.raises(OSError, match="broken"):
        gathered(failing(), 0)
    assert seen and not list(tmp_path.iterdir())
