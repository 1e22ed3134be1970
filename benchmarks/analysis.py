"""Time of the analysis beside Torch-Pruning's: `python -m benchmarks.analysis [--write] [NETWORK ...]`.

Both are given the same network at 224 pixels in the same process. fxprune: `analyze`, capture excluded (its time stands
beside). Torch-Pruning: its dependency graph, and all of its groups. Times are the best of three, or the first where it
takes longer than ten seconds; a minute is the limit. On one thread it is processor time, so that other programs on the
machine disturb it less; with torch's default number of threads it is the time that passes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

import fxprune as fp

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- analysis:begin -->", "<!-- analysis:end -->"
NETWORKS = ("resnet50", "densenet121", "vit_b_16", "swin_t", "maxvit_t")
HEADER = "| network | threads | capture | fxprune | Torch-Pruning | Torch-Pruning / fxprune |\n" + "|" + "---|" * 6
LIMIT = 60
Times = dict[str, float | None]


def measure(name: str) -> Times:
    """Seconds for capture, for our analysis, and for the peer's (None where it takes more than a minute)."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    warnings.simplefilter("ignore")
    model = get_model(name, weights=None).eval()
    example = torch.randn(2, 3, 224, 224)
    started = clock()
    gm = fp.capture(model, (example,))
    captured = clock() - started
    ours, peer = best(lambda: fp.analyze(gm), clock), best(lambda: _peer(model, example[:1]), clock)
    return {"capture": captured, "ours": ours, "peer": peer}


def best(work: Callable[[], object], clock: Callable[[], float], repeats: int = 3) -> float | None:
    """The shortest of several times in seconds; None where one takes more than LIMIT seconds of processor time."""

    def too_long(*_: Any) -> None:
        raise TimeoutError

    times: list[float] = []
    signal.signal(signal.SIGPROF, too_long)
    while len(times) < repeats and not (times and times[-1] > 10):
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        started = clock()
        try:
            work()
        except TimeoutError:
            return None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        times.append(clock() - started)
    return min(times)


def _peer(model: nn.Module, example: torch.Tensor) -> None:
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    for _ in graph.get_all_groups():
        pass


def row(name: str, threads: int) -> str:
    """A line of the table, measured in a process of its own. threads: 0 leaves torch's default."""
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")} | limits
    command = [sys.executable, "-m", "benchmarks.analysis", "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    times: Times = json.loads(done.stdout.splitlines()[-1])
    capture, ours, peer = times["capture"], times["ours"], times["peer"]
    assert capture is not None and ours is not None
    other = f"{peer:.2f} s | {peer / ours:.1f}" if peer else f"more than {LIMIT} s | more than {LIMIT / ours:.0f}"
    return f"| {name} | {threads or 'default'} | {capture:.1f} s | **{ours:.2f} s** | {other} |"


def main() -> None:
    """Print the table, and write it into docs/benchmarks.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS, help="of torchvision")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 0], help="0 is torch's default")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    lines = [HEADER]
    print(HEADER)
    for name in options.networks:
        for threads in options.threads:
            lines.append(row(name, threads))
            print(lines[-1], flush=True)
    if options.write:
        where = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
        command = f"python -m benchmarks.analysis --threads {' '.join(map(str, options.threads))} --write"
        write("\n".join([*lines, "", f"Measured on {where}, with `{command}`."]))


def write(table: str) -> None:
    """Put the table between its markers, all at once."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    draft = PAGE.with_suffix(".tmp")
    draft.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")
    draft.replace(PAGE)


if __name__ == "__main__":
    main()
