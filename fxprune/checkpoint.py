"""Restart: the state that a long run keeps in a folder, so that the same run can go on from there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import OutputError, ResumeError
from fxprune.version import VERSION

_RUN = "fxprune-run.json"  # says whose state it is; written before any stage
_OWN = re.compile(r"fxprune-run\.json|stage-[\w.-]+\.pt|\.fxprune-[\w.-]+\.tmp")
_STAGE = re.compile(r"[\w.-]+")
_PLAIN = (bool, int, float, str, type(None))  # with tensors, the leaves that torch.load reads without running code
_SHOWN = 40  # characters of a setting in a message


@dataclass(frozen=True)
class Checkpoint:
    """The state of one run, a file for each stage. Nothing is written before the first `save`.

    folder: where it is kept; None keeps nothing.
    key: the settings that make the run what it is, as JSON has them.
    """

    folder: Path | None = None
    key: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def open(path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint in the folder `path`, new or from an earlier run with the same settings.

        key: what JSON can hold: recipe, budget, seed, fingerprints of model and data. The versions of fxprune and torch
            are added, for others compute other bits.

        Raises ResumeError where the folder holds the state of another run, or something that is no state.
        """
        settings = json.loads(json.dumps({**key, "fxprune": VERSION, "torch": torch.__version__}))
        if path is None:
            return Checkpoint(None, settings)
        folder = Path(path)
        if (found := _run_of(folder)) is not None and found != settings:
            differences = "; ".join(_differences("", found, settings))
            raise ResumeError(
                f"{folder} holds the state of another run, with other settings ({differences}): "
                "use the same settings to go on, or delete the folder to start afresh"
            )
        return Checkpoint(folder, settings)

    def load(self, stage: str, *keys: str) -> dict[str, Any] | None:
        """What was saved last for `stage`, on the devices it came from; None where nothing was.

        Raises ResumeError where the file is damaged, or has not these keys. No code in it is run.
        """
        path = self._path(stage)
        if path is None or not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not compare checksums
            value = None if damaged else torch.load(path, weights_only=True)
        except Exception as error:
            raise ResumeError(f"{_damaged(path)} ({type(error).__name__})") from error
        if not isinstance(value, dict) or not value.keys() >= set(keys):
            raise ResumeError(_damaged(path))
        return value

    def save(self, stage: str, value: Mapping[str, Any]) -> None:
        """Keep `value` for `stage` in the place of what was kept before: wholly, or not at all.

        value: dicts, lists and tuples, one in another, of tensors, numbers, strings, bools and None. Tensors come back
            with the same bytes and strides, without gradients, and share no memory.

        Raises OutputError where the folder cannot be written, and TypeError for any other value.
        """
        path = self._path(stage)
        if path is None:
            return
        state = _plain(stage, dict(value))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.parent / _RUN).exists():
                _write(path.parent / _RUN, json.dumps({"version": 1, "key": self.key}, indent=1))
            _write(path, state)
        except OSError as error:
            raise OutputError(f"cannot write to {path.parent}: {error.strerror or error}") from error

    def discard(self) -> None:
        """Remove the state, for the run is complete. Files that fxprune did not write stay, and then the folder."""
        if self.folder is not None and self.folder.is_dir():
            _remove(self.folder)

    def _path(self, stage: str) -> Path | None:
        if not _STAGE.fullmatch(stage):
            raise ValueError(f"the name of a stage is made of letters, digits, dots and dashes, not {stage!r}")
        return self.folder and self.folder / f"stage-{stage}.pt"


def holds_state(path: str | os.PathLike[str]) -> bool:
    """Whether there is a state to go on from in the folder `path`."""
    return Path(path, _RUN).is_file()


def discard_state(path: str | os.PathLike[str]) -> None:
    """Remove the state of whatever run from the folder `path`, and the folder; nothing where there is none.

    Raises ResumeError, with nothing removed, where it holds anything else.
    """
    folder = Path(path)
    if not folder.exists():
        return
    _refuse_foreign(folder)
    _remove(folder)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """32 hexadecimal digits that change with any name, dtype, shape or byte; on whatever device the tensors are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _run_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the run whose state is in `folder`; None where there is none."""
    if not folder.exists():
        return None
    _refuse_foreign(folder)
    path = folder / _RUN
    if not path.exists():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        version, key = run["version"], dict(run["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(_damaged(path)) from error
    if version != 1:
        raise ResumeError(f"{path} has version {version!r}; this fxprune reads version 1: delete the folder")
    return key


def _refuse_foreign(folder: Path) -> None:
    """The folder holds nothing but what a Checkpoint wrote."""
    if not folder.is_dir():
        raise ResumeError(f"{folder} is a file, not a folder with the state of a run")
    names = sorted(entry.name for entry in folder.iterdir())
    if foreign := [name for name in names if not _OWN.fullmatch(name)]:
        raise ResumeError(f"{folder} holds {foreign[0]}, which fxprune did not write: it is left alone; move it away")
    if _RUN not in names and any(name.startswith("stage-") for name in names):
        raise ResumeError(f"{folder} lacks {_RUN}: nothing says which run its state is of; delete the folder")


def _remove(folder: Path) -> None:
    """Remove what a Checkpoint wrote; last what says whose state it is, so that no stage is ever left without it."""
    own = [entry for entry in folder.iterdir() if _OWN.fullmatch(entry.name)]
    for entry in sorted(own, key=lambda entry: entry.name == _RUN):
        entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write(path: Path, content: Any) -> None:
    """Write text or a state beside `path`, then rename: whoever reads finds the old file or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fxprune-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(where: str, value: Any) -> Any:
    """`value` with tensors that keep nothing alive but themselves. Raises TypeError for what cannot be read back."""
    if isinstance(value, Tensor):
        own = value.detach()
        return own if own.untyped_storage().nbytes() == own.numel() * own.element_size() else own.clone()
    if type(value) is dict:
        return {_plain(where, key): _plain(f"{where}.{key}", part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(f"{where}[{position}]", part) for position, part in enumerate(value))
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot keep")


def _differences(name: str, found: Any, wanted: Any) -> Iterator[str]:
    """`seed: 0 there, 1 now` for each setting that differs, nested ones by a dotted name."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**found, **wanted}:
            yield from _differences(f"{name}.{key}" if name else key, found.get(key), wanted.get(key))
    elif found != wanted:
        yield f"{name}: {_short(found)} there, {_short(wanted)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _damaged(path: Path) -> str:
    return f"{path} is damaged and cannot be read: delete the folder {path.parent} to start afresh"
