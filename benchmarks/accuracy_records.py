"""Results as JSON lines, appended one by one, so that a run that was stopped can go on."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.accuracy_data import ROOT, library

Record = dict[str, Any]

FOLDER = ROOT / "benchmarks" / "results"  # a file for each benchmark


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


def measure_all(
    module: str,
    wanted: Sequence[tuple[Any, ...]],
    shared: Iterable[object],
    options: argparse.Namespace,
    told: tuple[Callable[[Any], str], Callable[[Record], str]],
) -> int:
    """Run each of `wanted` in a process of its own, append what it finds to the results, and return how many failed.

    shared: arguments of every process. told: how a run is called, and what is printed of what it found.
    """
    failed = 0
    shared = [
        *shared,
        "--device",
        options.device,
        *(["--test-limit", options.test_limit] if options.test_limit else []),
    ]
    for done, run in enumerate(wanted, 1):
        name = f"[{done}/{len(wanted)}] {told[0](run)}"
        print(name, file=sys.stderr, flush=True)
        found = in_a_process(module, ["--one", *run, *shared])
        if found is None:
            failed += 1
            print(f"{name}: failed", flush=True)
            continue
        append(options.results, found | {"where": where(options.device)})
        print(f"{name}: {told[1](found)}", flush=True)
    return failed


def carry_out(
    module: str,
    options: argparse.Namespace,
    one: Callable[..., Record],
    wanted: Callable[[], Iterable[tuple[Any, ...]]],
    told: tuple[Callable[[Any], str], Callable[[Record], str]],
    write: Callable[[], None],
    *,
    shared: Iterable[object] = (),
    noun: str = "runs",
    images: bool = True,
) -> None:
    """What the command line asks for: a single run, printed as JSON; or all that are wanted, each in a process of its
    own, and the documents.

    one: a run from the words that name it. images: whether they need the folder of real ones. For the others see
    `measure_all`. Exits with a line where runs failed.
    """
    if options.one:
        print(json.dumps(one(*options.one)))
        return
    failed = 0
    if not options.table_only:
        if images:
            library()
        failed = measure_all(module, list(wanted()), shared, options, told)
    if options.write or options.table_only:
        write()
    if failed:
        raise SystemExit(f"{failed} {noun} failed; the others are in {options.results}")


def add_arguments(parser: argparse.ArgumentParser, results: Path) -> None:
    """What every benchmark of accuracy can be told on the command line."""
    beside = f"by default {results.relative_to(ROOT)}, or with --test-limit a file beside it"
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="leave out what the results have already")
    parser.add_argument("--results", type=Path, help=beside)
    parser.add_argument("--test-limit", type=int, help="test images, to try it out; nothing can be written then")
    parser.add_argument("--write", action="store_true", help="write what was measured into the documents")
    parser.add_argument("--table-only", action="store_true", help="write it of the results, and run nothing")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)


def parsed(parser: argparse.ArgumentParser, results: Path) -> argparse.Namespace:
    """The arguments, with the file of the results. Exits where a trial would be written."""
    options = parser.parse_args()
    if options.test_limit and (options.write or options.table_only):
        parser.error("what was measured with --test-limit is not written")
    trial = results.with_name(f"{results.stem}-trial{results.suffix}")
    options.results = options.results or (trial if options.test_limit else results)
    return options


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
