"""Calibration data: every form, as often as one likes, and the message for every mistake."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fxprune.cli.calibration import open_calibration
from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.samples import Batches
from fxprune.errors import CalibrationError, SpecError

PLAIN = Preprocessing()


def shapes(batches: Iterable[Any]) -> list[tuple[int, ...]]:
    return [tuple(batch.shape) for batch in batches]


def test_a_folder_in_sorted_order_as_often_as_one_likes(pictures: Path) -> None:
    batches = open_calibration(str(pictures), PLAIN, batch_size=4)
    assert isinstance(batches, Batches)
    assert len(batches) == 2
    assert shapes(batches) == shapes(batches) == [(4, 3, 10, 12), (2, 3, 10, 12)]
    names = [Path(name).name for name in batches.samples.names]  # type: ignore[attr-defined]
    assert names == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]


def test_a_zip_holds_the_same_images(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in sorted(pictures.rglob("*.*")):
            archive.write(path, path.relative_to(pictures))
    zipped = open_calibration(str(tmp_path / "pictures.zip"), PLAIN, batch_size=6)
    (ours,), (theirs,) = zipped, open_calibration(str(pictures), PLAIN, batch_size=6)
    assert torch.equal(ours, theirs)


def test_images_are_decoded_only_when_asked_for(pictures: Path) -> None:
    batches = open_calibration(str(pictures), PLAIN, batch_size=2)
    for path in pictures.rglob("*.png"):
        path.unlink()
    assert isinstance(batches, Batches)
    with pytest.raises(CalibrationError, match=r"0\.png cannot be decoded"):
        batches[0]


def test_a_limit_and_grey_images(pictures: Path) -> None:
    assert shapes(open_calibration(str(pictures), PLAIN, batch_size=2, limit=3, channels=1)) == [
        (2, 1, 10, 12),
        (1, 1, 10, 12),
    ]


def test_a_damaged_image_is_named(pictures: Path) -> None:
    (pictures / "b" / "3.png").write_bytes((pictures / "b" / "3.png").read_bytes()[:60])
    with pytest.raises(CalibrationError, match=r"3\.png cannot be decoded as an image"):
        list(open_calibration(str(pictures), PLAIN))


def test_images_of_several_sizes_need_a_size(pictures: Path) -> None:
    Image.new("RGB", (9, 9)).save(pictures / "z.png")
    with pytest.raises(CalibrationError, match=r"z\.png is \(9, 9\) and .* \(10, 12\) pixels: give --size"):
        list(open_calibration(str(pictures), PLAIN))
    assert shapes(open_calibration(str(pictures), Preprocessing(size=(8, 8)))) == [(7, 3, 8, 8)]


def test_npz_takes_x_or_the_first_array_with_four_axes(tmp_path: Path) -> None:
    images = np.zeros((5, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", Y=np.zeros(5), X=images)
    np.savez(tmp_path / "b.npz", labels=np.zeros(5), pixels=images)
    for name in ("a.npz", "b.npz"):
        assert shapes(open_calibration(str(tmp_path / name), PLAIN, batch_size=3)) == [(3, 3, 4, 4), (2, 3, 4, 4)]


def test_floating_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3, 4, 4))
    np.save(tmp_path / "a.npy", values)
    torch.save(torch.from_numpy(values), tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        (batch,) = open_calibration(str(tmp_path / name), Preprocessing((0.5,), (0.1,)))
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch, torch.from_numpy(values).float())


@pytest.mark.parametrize(("name", "sizes"), [("tensor", [8, 4]), ("generator", [5, 5, 2]), ("pairs", [5, 5, 2])])
def test_a_factory_up_to_a_limit_as_often_as_one_likes(networks: Path, name: str, sizes: list[int]) -> None:
    batches = open_calibration(f"{networks}:{name}", PLAIN, batch_size=8, limit=12)
    for _ in range(2):
        firsts = [batch if isinstance(batch, Tensor) else batch[0] for batch in batches]
        assert [len(batch) for batch in firsts] == sizes


def test_a_generator_can_be_walked_twice(networks: Path) -> None:
    batches = open_calibration(f"{networks}:generator", PLAIN)
    first, second = list(batches), list(batches)
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_sized_data_is_handed_on_as_it_is(networks: Path) -> None:
    assert isinstance(open_calibration(f"{networks}:pairs", PLAIN), list)


def test_a_factory_that_fails_or_gives_no_data(networks: Path) -> None:
    with pytest.raises(SpecError, match="out of order"):
        open_calibration(f"{networks}:broken", PLAIN)
    with pytest.raises(CalibrationError, match="gave a int: a tensor or an iterable of batches is needed"):
        open_calibration(f"{networks}:number", PLAIN)


def test_mistakes_in_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "a.npz").write_bytes(b"no arrays")
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "a.pt").write_bytes(b"no tensor")
    (tmp_path / "a.txt").write_text("text")
    np.savez(tmp_path / "flat.npz", labels=np.zeros(5))
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 4, 4)))
    np.save(tmp_path / "gray.npy", np.zeros((2, 4, 4), dtype=np.uint8))
    torch.save({"x": torch.zeros(1)}, tmp_path / "dict.pt")
    messages = {
        "missing": "no such file or folder; --calibration takes a folder or .zip of images",
        "empty": "holds no images",
        "a.zip": "cannot be read as a zip file",
        "a.npz": "cannot be read",
        "a.npy": "cannot be read",
        "a.pt": "cannot be read",
        "a.txt": "none of the known endings",
        "flat.npz": "neither an array X nor one with four axes; it has labels",
        "none.npy": "the calibration data is empty",
        "gray.npy": r"need four axes \(N, H, W, C\), not the shape \(2, 4, 4\)",
        "dict.pt": "holds a dict",
    }
    for name, message in messages.items():
        with pytest.raises(CalibrationError, match=message):
            list(open_calibration(str(tmp_path / name), PLAIN))
