"""What `fxprune demo` does and measures."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune as fp
from fxprune.demo.digits import load
from fxprune.demo.network import trained
from fxprune.demo.train import accuracy
from fxprune.progress import Progress, silent
from fxprune.report import Report

FLOPS = 0.5  # share of the FLOPs to keep
CALIBRATION = 512  # training images, without their labels
ROUNDS, WARM_UP, BATCH = 15, 3, 64  # timed runs of either network, runs before them, images in each


@dataclass(frozen=True)
class Outcome:
    """Accuracies in percent on the test digits, and milliseconds for a batch of them.

    dense: the trained network.
    shrunk: the same channels removed, nothing else done.
    pruned: what `prune` returned.
    """

    dense: float
    shrunk: float
    pruned: float
    dense_milliseconds: float
    pruned_milliseconds: float
    test_images: int
    report: Report
    out: Path


def run(out: Path, progress: Progress = silent) -> Outcome:
    """Prune the digits network to half its FLOPs, measure it, save the result in `out`.

    Raises SpecError where scikit-learn is missing and OutputError where `out` cannot be written.
    """
    training, test = load()
    model = trained()
    images = training.images[:CALIBRATION]
    budget = fp.Budget(flops=FLOPS)
    result = fp.prune(model, images[:2], budget=budget, calibration=images, recipe="fast", progress=progress)
    shrunk = fp.shrink(fp.capture(model, images[:2]), result.plan)
    result.save(out)
    before, after = latencies(model, result.model, test.images[:BATCH])
    return Outcome(
        dense=accuracy(model, test),
        shrunk=accuracy(shrunk, test),
        pruned=accuracy(result.model, test),
        dense_milliseconds=before,
        pruned_milliseconds=after,
        test_images=len(test.labels),
        report=result.report,
        out=out,
    )


@torch.inference_mode()
def latencies(first: nn.Module, second: nn.Module, batch: Tensor, rounds: int = ROUNDS) -> tuple[float, float]:
    """Median milliseconds of both on `batch`, run in turns so that a change in the machine's load meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_UP + rounds):
        for model, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            model(batch)
            if number >= WARM_UP:  # the first runs fill caches and allocators
                taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])
