"""What `fast` costs, in dense forwards over its images: `python -m benchmarks.cost_of_fast [--write] [NETWORK ...]`.

Processor time on one thread, so that other programs on the machine disturb it less. The unit is one run of the dense
network over the calibration images in batches of 64, in eager mode without gradients, in the same process and in turns
with `fast`; both are given as the median. What `fast` takes for half of the images tells what does not grow with them.
A small run before warms up what is computed once for a process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fxprune as fp
from benchmarks.accuracy_data import NETWORKS, build, calibration
from benchmarks.accuracy_records import where, write
from benchmarks.accuracy_table import PAGE

HEADER = "| network | images | dense forward | `fast` | dense forwards | of which constant |\n|---|---|---|---|---|---|"


class Cost(NamedTuple):
    """Seconds of one run of the dense network over so many images, and of `fast` with all and with half of them."""

    network: str
    images: int
    dense: float
    fast: float
    half: float

    @property
    def constant(self) -> float:
        """Seconds that do not grow with the images."""
        return max(0.0, 2 * self.half - self.fast)


def measure(network: str, share: float, turns: int) -> Cost:
    """What `fast` costs for a network at a share of its FLOPs."""
    model, images = build(network), calibration(network, 0)
    prune(model, images[:32], share)
    dense, fast, half = [], [], []
    for _ in range(turns):
        dense.append(seconds(lambda: forward(model, images)))
        fast.append(seconds(lambda: prune(model, images, share)))
        dense.append(seconds(lambda: forward(model, images)))
        half.append(seconds(lambda: prune(model, images[: len(images) // 2], share)))
    return Cost(network, len(images), median(dense), median(fast), median(half))


@torch.inference_mode()
def forward(model: nn.Module, images: Tensor) -> None:
    """One run of a network over the images."""
    for batch in images.split(64):
        model(batch)


def prune(model: nn.Module, images: Tensor, share: float) -> None:
    """What is measured."""
    fp.prune(model, images[:2], budget=fp.Budget(flops=share), calibration=images, recipe="fast")


def seconds(work: Callable[[], None]) -> float:
    """The processor time of some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def table(found: Sequence[Cost]) -> Iterator[str]:
    """A line for each network."""
    yield HEADER
    for cost in found:
        cells = [NETWORKS[cost.network].title, f"{cost.images:,}", f"{cost.dense:.2f} s", f"{cost.fast:.1f} s"]
        yield f"| {' | '.join(cells)} | **{cost.fast / cost.dense:.1f}** | {cost.constant / cost.dense:.1f} |"


def main() -> None:
    """Print the table, and write it into docs/benchmarks.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cifar = [name for name, setting in NETWORKS.items() if setting.labelled]
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=cifar)
    parser.add_argument("--share", type=float, default=0.5, help="of the FLOPs, to keep")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for network in options.networks:
        found.append(measure(network, options.share, options.turns))
        print("\n".join(table(found)), flush=True)
    if options.write:
        told = f"Measured on {where('cpu')}, with `python -m benchmarks.cost_of_fast --write`."
        write(PAGE, "cost-of-fast", "\n".join([*table(found), "", told]))


if __name__ == "__main__":
    main()
