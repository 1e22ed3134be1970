"""Writing a result to a directory: all of it or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import fx

from fxprune.codegen.source import CONSTANTS, large_constants, module_source
from fxprune.errors import OutputError

_OWN_FILES = {"model.py", "model.safetensors"}


def save(gm: fx.GraphModule, directory: str | os.PathLike[str], files: Mapping[str, str]) -> Path:
    """Writes model.py, model.safetensors and the given texts, by file name, and returns the directory.

    Large tensors that are not in the state_dict go to constants.pt, which model.py reads.

    gm: a lifted graph. directory: made with its parents; where it holds an earlier result, that is replaced as a whole
    once everything is written. Raises OutputError, with nothing changed, where the directory holds anything else or
    cannot be written.
    """
    target = Path(directory).resolve()
    texts = {"model.py": module_source(gm), **files}
    refuse_foreign(target, texts)
    # clones: tied parameters share their memory, which safetensors refuses
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in gm.state_dict().items()}
    constants = large_constants(gm)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as workspace:
            fresh = Path(workspace, "new")
            fresh.mkdir()
            for name, text in texts.items():
                (fresh / name).write_text(text, encoding="utf-8")
            if constants:
                torch.save(constants, fresh / CONSTANTS)
            save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
            _swap(fresh, target, Path(workspace, "old"))
    except OSError as error:
        raise OutputError(f"cannot write to {target}: {error.strerror or error}") from error
    return target


def refuse_foreign(target: Path, names: Iterable[str] = ()) -> None:
    """An existing target must be empty, or hold an earlier result and nothing beside it.

    names: of files, besides those of every result, that will be written.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target} is a file: give a directory")
    try:
        there = {entry.name for entry in target.iterdir()} - {"__pycache__"}
    except OSError as error:
        raise OutputError(f"cannot read {target}: {error.strerror or error}") from error
    if there and not there >= _OWN_FILES:
        raise OutputError(f"{target} holds {sorted(there)[0]} and no earlier result: give a new or an empty directory")
    if foreign := sorted(
        name for name in there - _OWN_FILES - {*names, CONSTANTS} if not name.startswith(("plan.", "report."))
    ):
        raise OutputError(f"{target} holds {foreign[0]}, which fxprune did not write: give a new directory")


def _swap(fresh: Path, target: Path, aside: Path) -> None:
    """Puts the new directory in the place of the old one, which comes back should that fail."""
    if not target.exists():
        fresh.rename(target)
        return
    target.rename(aside)
    try:
        fresh.rename(target)
    except BaseException:
        aside.rename(target)
        raise
