"""Accuracy of real networks, pruned without retraining: `python benchmarks/accuracy.py [--write] [NETWORK ...]`.

Networks and images are those of the folder FXPRUNE_DATA (see its README): trained by others, labelled by others. Test
images choose nothing. Every row runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune as fp

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FXPRUNE_DATA", ROOT.parent / "shared" / "data"))
TABLES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
BEGIN, END = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"

# network: title, calibration images and how many, test images, shares of the FLOPs to keep
RUNS: dict[str, tuple[str, str, int, str, tuple[float, ...]]] = {
    "cifar10_resnet20": ("ResNet-20, CIFAR-10", "cifar10_train15k.npz", 1024, "cifar10_test.npz", (0.58, 0.5)),
    "cifar10_resnet56": ("ResNet-56, CIFAR-10", "cifar10_train15k.npz", 1024, "cifar10_test.npz", (0.58, 0.5)),
    "imagenet_mobilenet_v2": (
        "MobileNetV2, ImageNet",
        "imagenet_sample1000.zip",
        1000,
        "imagenet_val_a.zip",
        (0.8, 0.58, 0.5),
    ),
    "imagenet_squeezenet1_0": (
        "SqueezeNet 1.0, ImageNet",
        "imagenet_sample1000.zip",
        1000,
        "imagenet_val_a.zip",
        (0.8, 0.58, 0.5),
    ),
}
HEADER = "| network | FLOPs kept | dense | magnitude, uncorrected | fxprune | time | peak memory |\n" + "|" + "---|" * 7


def measure(network: str, share: float, recipe: str, seed: int) -> dict[str, float]:
    """Prune once and count hits on the whole test set: percent, seconds, bytes."""
    load: Any = importlib.import_module("load")
    _, images, count, test, _ = RUNS[network]
    model = load.build(network)
    calibration = torch.cat([x for x, _ in load.batches(network, images, limit=count)])
    started = time.perf_counter()
    result = fp.prune(
        model, calibration[:2], budget=fp.Budget(flops=share), calibration=calibration, recipe=recipe, seed=seed
    )
    seconds = time.perf_counter() - started
    return {
        "top1": top1(load, result.model, network, test),
        "kept": result.report.after["flops"] / result.report.before["flops"],
        "seconds": seconds,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


@torch.inference_mode()
def top1(load: Any, model: nn.Module, network: str, test: str) -> float:
    """Share of the test images that are classified rightly, in percent."""
    hits = total = 0
    for x, y in load.batches(network, test):
        hits += int((model(x).argmax(1) == y).sum())
        total += len(y)
    return 100 * hits / total


def dense(network: str) -> dict[str, float]:
    """The accuracy of the network as it was trained."""
    load: Any = importlib.import_module("load")
    return {"top1": top1(load, load.build(network), network, RUNS[network][3])}


def in_a_process(*arguments: str) -> dict[str, float]:
    """What this script prints when it is called with these arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(networks: list[str], seed: int) -> Iterator[str]:
    """The lines of the table, as they are measured."""
    yield HEADER
    for network in networks:
        title, *_, shares = RUNS[network]
        whole = in_a_process("--one", network, "dense")["top1"]
        for share in shares:
            plain, ours = (
                in_a_process("--one", network, recipe, str(share), str(seed)) for recipe in ("magnitude", "fast")
            )
            yield (
                f"| {title} | {100 * share:.0f} % | {whole:.2f} | {plain['top1']:.2f} | **{ours['top1']:.2f}** "
                f"| {ours['seconds']:.0f} s | {ours['bytes'] / 2**30:.1f} GiB |"
            )


def main() -> None:
    """Print the table, and write it into the documents with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(RUNS)}; all where none is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write the table into docs/ and the README")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(DATA))
    if not (DATA / "load.py").is_file():
        raise SystemExit(f"no load.py in {DATA}: set FXPRUNE_DATA to the folder of trained networks")
    if options.one:
        network, recipe, *rest = options.one
        found = dense(network) if recipe == "dense" else measure(network, float(rest[0]), recipe, int(rest[1]))
        print(json.dumps(found))
        return
    lines = []
    for line in rows(options.networks or list(RUNS), options.seed):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        where = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
        table = "\n".join([*lines, "", f"Measured on {where}, with `python benchmarks/accuracy.py --write`."])
        for path in TABLES:
            before, _, rest = path.read_text().partition(BEGIN)
            path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
