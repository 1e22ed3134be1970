"""The zoo: fxprune and Torch-Pruning on some 300 networks, judged by one oracle.

    python -m benchmarks.zoo [--resume] [--every 1/2] [--only PATTERN ...] [--write]

Every network is examined in a process of its own, with a limit on time and memory. Results are appended to a file of
JSON lines, one for each network, so that a run that was stopped is continued with --resume. --write makes docs/zoo.md
of what the file holds.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import examine, peer
from benchmarks.accuracy_records import FOLDER
from benchmarks.models import Entry, entries
from benchmarks.zoo_table import write

RESULTS = FOLDER / "zoo.jsonl"
Findings = dict[str, Any]
Work = Callable[..., Iterator[Findings]]


def measured(entry: Entry, known: Findings, options: argparse.Namespace) -> Findings:
    """All findings about one network: under "ours" those of fxprune, under "peer" those of Torch-Pruning."""
    found: Findings = {"spec": entry.spec, "params": entry.params}
    if "ours" in options.parts:
        ours = (entry.spec, options.seeds, options.seconds / 4)
        found["ours"] = in_a_process(examine.examine, ours, options.seconds, options.memory)
    if "peer" in options.parts:
        outputs = (found.get("ours") or known.get("ours") or {}).get("outputs", ())
        layers = [name for name in outputs if name.endswith((".weight", ".bias"))]
        arguments = (entry.spec, layers, options.peer_seconds)
        found["peer"] = in_a_process(peer.examine, arguments, options.seconds, options.memory)
    return found


def in_a_process(work: Work, arguments: tuple[Any, ...], seconds: float, memory: float) -> Findings:
    """What `work` yields, in a process of its own; "failure" says why it ended early.

    seconds, memory: its limits; memory in GiB.
    """
    context = multiprocessing.get_context("fork")  # torch and the model libraries are loaded once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, work, arguments, memory), daemon=True)
    process.start()
    sender.close()
    found: Findings = {}
    started = time.monotonic()
    try:
        while receiver.poll(max(0.0, started + seconds - time.monotonic())):
            found |= receiver.recv()
        found["failure"] = f"time limit of {seconds:.0f} s"
    except EOFError:
        process.join(5)
        if found.get("stage") != "end" and "failure" not in found:
            found["failure"] = f"the process died (exit code {process.exitcode})"
    if process.is_alive():
        os.kill(int(process.pid or 0), signal.SIGKILL)
    process.join()
    if found.get("stage") == "end":
        del found["stage"]
    return found | {"wall_seconds": time.monotonic() - started}


def _child(sender: Connection, work: Work, arguments: tuple[Any, ...], memory: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open(os.devnull, "w") as silence:  # noqa: PTH123 (file descriptors are replaced)
        os.dup2(silence.fileno(), 2)
    try:
        for findings in work(*arguments):
            sender.send(findings)
        sender.send({"stage": "end"})
    except MemoryError:
        sender.send({"failure": f"memory limit of {memory:.0f} GiB"})
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is a finding)
        text = f"{type(error).__name__}: {error}"
        sender.send({"failure": "memory limit" if "allocate memory" in text else text[:1000]})
    sender.send({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})
    sender.close()


def line(found: Findings, done: int, count: int) -> str:
    """One line of progress."""
    parts = [f"[{done}/{count}] {found['spec']}"]
    if ours := found.get("ours"):
        parts += [
            f"{ours.get('groups', '-')} groups {100 * ours.get('share', 0):.0f} %",
            f"analysis {ours.get('analysis_seconds', -1):.1f} s",
            f"errors {ours.get('whole_error', -1):.0e} {ours.get('single_error', -1):.0e}",
            f"{ours['wall_seconds']:.0f} s",
            ours.get("failure", "")[:150] + (f" in {ours['stage']}" if "stage" in ours else ""),
        ]
    if other := found.get("peer"):
        verdict = other.get("verdict", other.get("failure", "-"))[:60]
        parts.append(f"peer: {verdict} {100 * other.get('share', 0):.0f} % {other['wall_seconds']:.0f} s")
    return " ".join(part for part in parts if part)


def load(path: Path) -> dict[str, Findings]:
    """The newest findings about each network."""
    known: dict[str, Findings] = {}
    for found in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        known.setdefault(found["spec"], {}).update(found)
    return known


def run(options: argparse.Namespace) -> None:
    """Examine what is asked for, smallest first."""
    known = load(options.results)
    chosen = [entry for entry in entries() if any(fnmatch.fnmatch(entry.spec, pattern) for pattern in options.only)]
    if options.resume:
        chosen = [entry for entry in chosen if not set(options.parts) <= known.get(entry.spec, {}).keys()]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    first, _, of = options.every.partition("/")
    chosen = chosen[int(first) - 1 :: int(of)]
    for done, entry in enumerate(chosen, 1):
        found = measured(entry, known.get(entry.spec, {}), options)
        with options.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(line(found, done, len(chosen)), flush=True)


def main() -> None:
    """Run the zoo from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="networks, such as 'timm:res*'")
    parser.add_argument("--resume", action="store_true", help="leave out what the results have already")
    parser.add_argument("--every", default="1/1", metavar="K/N", help="only the K-th of every N, to run N side by side")
    parser.add_argument("--seeds", type=int, default=3, help="of balanced and unbalanced plans for all groups at once")
    parser.add_argument("--seconds", type=float, default=400, help="the limit for each network")
    parser.add_argument("--peer-seconds", type=float, default=60, help="processor time for Torch-Pruning")
    parser.add_argument("--memory", type=float, default=20, help="the limit for each process in GiB of address space")
    parser.add_argument("--parts", nargs="+", default=["ours", "peer"], choices=["ours", "peer"], help="whose results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write docs/zoo.md")
    parser.add_argument("--table-only", action="store_true", help="write docs/zoo.md of the results, and run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table_only:
        run(options)
    if options.write or options.table_only:
        known = load(options.results)
        write([known.get(entry.spec, {"spec": entry.spec, "params": entry.params}) for entry in entries()])


if __name__ == "__main__":
    main()
