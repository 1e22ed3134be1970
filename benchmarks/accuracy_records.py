"""Results as JSON lines, appended one by one, so that a run that was stopped can go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.accuracy_data import ROOT

Record = dict[str, Any]


def load(path: Path, key: Sequence[str]) -> dict[tuple[Any, ...], Record]:
    """The newest record for each value of the fields `key`; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else ()
    return {tuple(found[name] for name in key): found for found in map(json.loads, lines)}


def append(path: Path, record: Record) -> None:
    """Write one more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def in_a_process(module: str, arguments: Iterable[object]) -> Record | None:
    """What a module prints when it is run with these arguments, as JSON on its last line; None where it fails.

    In a process of its own, so that its peak memory is its own. Its progress and errors go where ours go.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        return None
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def where(device: str) -> str:
    """What a measurement was made with."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, torch {torch.__version__}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and with several values the standard deviation."""
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.{digits}f}"


def write(page: Path, name: str, text: str) -> None:
    """Put a text between the markers of this name, all at once. Exits with one line where they are missing."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text()
    if begin not in old or end not in old:
        raise SystemExit(f"{page} lacks the markers {begin} and {end}")
    draft = page.with_suffix(".tmp")
    draft.write_text(f"{old.partition(begin)[0]}{begin}\n{text}\n{end}{old.partition(end)[2]}")
    draft.replace(page)
