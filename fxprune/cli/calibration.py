"""`--calibration`: unlabelled data out of files, archives and a user's own code."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.cli.preprocessing import Preprocessing
from fxprune.cli.python_file import call_factory, is_python_spec, load_object
from fxprune.cli.samples import Array, Batches, Images, Samples
from fxprune.errors import CalibrationError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMS = "a folder or .zip of images, a .npz, .npy or .pt file, or path/to/file.py:factory"


@dataclass(frozen=True)
class Iterated:
    """What a user's factory gives, asked for anew on each walk, up to a number of samples."""

    make: Callable[[], Iterable[Any]]
    limit: int | None

    def __iter__(self) -> Iterator[Any]:
        left = self.limit
        for batch in self.make():
            if left is None:
                yield batch
                continue
            if left <= 0:
                return
            leaves = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
            yield pytree.tree_map(partial(_first, count=left), batch)
            left -= len(leaves[0]) if leaves else 1


def _first(leaf: Any, count: int) -> Any:
    return leaf[:count] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def open_calibration(
    spec: str,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    channels: int = 3,
) -> Iterable[Any]:
    """The data that `spec` names.

    preprocessing: for images, in files and in uint8 arrays.
    limit: take only so many samples, in sorted order of the names of images.
    channels: 1 decodes images as greyscale.

    Raises CalibrationError where there is nothing, or nothing readable; SpecError for a factory that fails.
    """
    if is_python_spec(spec):
        return _from_factory(spec, preprocessing, batch_size, limit)
    path = Path(spec)
    if not path.exists():
        raise CalibrationError(f"{spec}: no such file or folder; --calibration takes {FORMS}")
    if path.is_dir() or path.suffix == ".zip":
        names, read = _folder(path) if path.is_dir() else _zip(path)
        if not names:
            raise CalibrationError(f"{spec} holds no images ({', '.join(sorted(SUFFIXES))})")
        return _batches(Images(names, read, preprocessing, "L" if channels == 1 else "RGB"), batch_size, limit)
    return _batches(Array(_array(path), preprocessing), batch_size, limit)


def _batches(samples: Samples, batch_size: int, limit: int | None) -> Batches:
    if len(samples) == 0:
        raise CalibrationError("the calibration data is empty")
    return Batches(samples, batch_size, len(samples) if limit is None else min(limit, len(samples)))


def _folder(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    names = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return names, lambda name: Path(name).read_bytes()


def _zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise CalibrationError(f"{path} cannot be read as a zip file: {error}") from error
    return sorted(name for name in archive.namelist() if Path(name).suffix.lower() in SUFFIXES), archive.read


def _array(path: Path) -> Tensor | np.ndarray[Any, Any]:
    """The array in a .npz (X, or the first with four axes), .npy or .pt file."""
    try:
        if path.suffix == ".npy":
            data: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                data = _images_of(arrays, path)
        elif path.suffix in (".pt", ".pth"):
            data = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise CalibrationError(f"{path} has none of the known endings; --calibration takes {FORMS}")
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CalibrationError(f"{path} cannot be read: {type(error).__name__}: {reason}") from error
    if not isinstance(data, Tensor | np.ndarray) or data.ndim == 0:
        raise CalibrationError(f"{path} holds a {type(data).__name__}: one array with a sample in each row is needed")
    return data


def _images_of(arrays: Any, path: Path) -> Any:
    if "X" in arrays:
        return arrays["X"]
    for array in map(arrays.__getitem__, arrays.files):
        if array.ndim == 4:
            return array
    raise CalibrationError(f"{path} holds neither an array X nor one with four axes; it has {', '.join(arrays.files)}")


def _from_factory(spec: str, preprocessing: Preprocessing, batch_size: int, limit: int | None) -> Iterable[Any]:
    found = load_object(spec)
    data = call_factory(found, spec) if callable(found) else found
    if isinstance(data, Tensor | np.ndarray):
        return _batches(Array(data, preprocessing), batch_size, limit)
    if not isinstance(data, Iterable):
        raise CalibrationError(f"{spec} gave a {type(data).__name__}: a tensor or an iterable of batches is needed")
    if limit is None and isinstance(data, Sized):
        return data
    if isinstance(data, Iterator):  # can be walked once only: ask for a new one each time
        return Iterated(found, limit) if callable(found) else list(data)
    return Iterated(lambda: data, limit)
