"""ResNet-50 on ImageNet with 1.73 times fewer FLOPs, from 2,560 unlabelled training images: the recipe of the paper.

    python benchmarks/resnet50_imagenet.py --train ILSVRC2012/train --val ILSVRC2012/val

Both folders hold images in a folder for each class, as torchvision's ImageFolder reads them; --train may be any folder
of images, for their labels are not looked at. The weights are torchvision's IMAGENET1K_V1 (76.13 % top-1), downloaded,
or those of --weights. It prints the accuracy on the whole of --val before and after, the time, and the peak memory.
With --out the smaller network is saved there; after an interruption the same command goes on from the state in
OUT.partial.

    python benchmarks/resnet50_imagenet.py --random --images 2048 --recipe fast --device cuda

needs no files: random weights and random images of the right size, for the time and the memory alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet50_Weights, resnet50

import fxprune as fp
from fxprune.cli.console import INTERRUPTED
from fxprune.cli.prune import state_folder
from fxprune.cli.results import check_writable
from fxprune.cli.weights import load_weights
from fxprune.errors import CalibrationError, FxpruneError

WEIGHTS = ResNet50_Weights.IMAGENET1K_V1
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
CLASSES = 1000
Files = Sequence[tuple[Path, int]]  # with their labels


class Images(Dataset[tuple[Tensor, int]]):
    """Image files with labels, resized and cropped as the weights want it: [3, 224, 224]."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.transform = WEIGHTS.transforms()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                return self.transform(image.convert("RGB")), label
        except (OSError, SyntaxError, ValueError) as error:
            raise CalibrationError(f"{path} cannot be decoded as an image: {error}") from error


def files_of(folder: Path) -> Files:
    """All images below a folder, sorted, each with the position of its class folder among all of them; -1 where it is
    in none. Exits with one line where there are none.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder")
    labels = {name: label for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir()))}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [(path, labels.get(folder / path.relative_to(folder).parts[0], -1)) for path in found]


def tested(folder: Path) -> Files:
    """As `files_of`, of images that lie in a folder for each class. Exits with one line where one does not."""
    found = files_of(folder)
    astray = next((path for path, label in found if label < 0), None)
    if astray is not None:
        raise SystemExit(f"{astray} is in no class folder: --val wants a folder for each class")
    classes = len({label for _, label in found})
    if classes != CLASSES:
        print(f"{folder} has {classes} class folders, not {CLASSES}: no true top-1", file=sys.stderr)
    return found


def calibration(files: Files, options: argparse.Namespace) -> Tensor:
    """A draw of the training images, or random ones: [images, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.random:
        return torch.randn(options.images, 3, 224, 224, generator=generator)
    if len(files) < options.images:
        print(f"{options.train} holds {len(files)} images, fewer than {options.images}", file=sys.stderr)
    chosen = torch.randperm(len(files), generator=generator)[: options.images].tolist()
    found = torch.empty(len(chosen), 3, 224, 224)
    start = 0
    for batch, _ in loader([files[index] for index in chosen], options):
        found[start : start + len(batch)] = batch
        start += len(batch)
        show("read", start, len(chosen))
    return found


def loader(files: Files, options: argparse.Namespace) -> DataLoader[tuple[Tensor, int]]:
    """Batches of images and labels."""
    return DataLoader(Images(files), options.batch_size, num_workers=options.workers)


def network(options: argparse.Namespace) -> nn.Module:
    """ResNet-50 in evaluation mode. Exits with one line where the weights cannot be had."""
    if options.random:
        torch.manual_seed(options.seed)
    model: nn.Module = resnet50()
    if options.random:
        return model.eval()
    try:
        if options.weights:
            load_weights(model, options.weights)
        else:
            model.load_state_dict(WEIGHTS.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"no weights from torchvision's server ({reason}): --weights takes a file") from error
    return model.eval()


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Give a random network the BatchNorm statistics of these images, so that signals keep their size; in place."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
    model.train()(images)
    model.eval()


@torch.inference_mode()
def top1(model: nn.Module, files: Files, options: argparse.Namespace, title: str) -> float:
    """The share of the validation images that are classified rightly, in percent."""
    files = files[:: max(1, len(files) // (options.val_limit or len(files)))][: options.val_limit]
    hits = done = 0
    for x, y in loader(files, options):
        hits += int((model(x.to(options.device)).argmax(1).cpu() == y).sum())
        done += len(y)
        show(title, done, len(files))
    return 100 * hits / done


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prune, and what came of it. What is wrong with the files is said before any is read."""
    train, val = ((), ()) if options.random else (files_of(options.train), tested(options.val))
    if options.out:
        check_writable(options.out, None)
    model = network(options).to(options.device)
    images = calibration(train, options)
    if options.random:
        settle(model, images[:16].to(options.device))
    before = None if options.random else top1(model, val, options, "test before")
    cuda = options.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = fp.prune(
        model,
        images[:2].to(options.device),
        budget=fp.Budget(flops=options.flops),
        calibration=images,
        recipe=options.recipe,
        seed=options.seed,
        checkpoint=state_folder(options.out) if options.out else None,
        progress=show,
    )
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(result.report, file=sys.stderr)
    if options.out:
        result.save(options.out)
    return {
        "recipe": options.recipe,
        "images": len(images),
        "flops_before": result.report.before["flops"],
        "flops_after": result.report.after["flops"],
        "top1_before": before,
        "top1_after": None if options.random else top1(result.model, val, options, "test after"),
        "seconds": seconds,
        "peak_bytes": peak,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }


def summary(found: dict[str, Any]) -> str:
    """What was found, for people."""
    ratio = found["flops_before"] / found["flops_after"]
    lines = [f"recipe {found['recipe']}, {found['images']} images, {found['device']}, torch {found['torch']}"]
    if found["top1_before"] is not None:
        lines.append(f"top-1 {found['top1_before']:.2f} % -> {found['top1_after']:.2f} %")
    lines.append(f"FLOPs {found['flops_before']:,} -> {found['flops_after']:,} ({ratio:.2f} times fewer)")
    lines.append(f"{found['seconds']:.1f} s, peak memory {found['peak_bytes'] / 2**30:.2f} GiB")
    if found["peak_gpu_bytes"] is not None:
        lines[-1] += f", on the GPU {found['peak_gpu_bytes'] / 2**30:.2f} GiB"
    return "\n".join(lines)


def show(stage: str, done: int, total: int) -> None:
    """A line of progress, written anew with every step on a terminal, and once a stage elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage} {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)
    elif done == total:
        print(f"{stage} {done}/{total}", file=sys.stderr, flush=True)


def count(text: str) -> int:
    """A whole number above 0."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return float(text)


def device(text: str) -> torch.device:
    """A device that is there."""
    try:
        return torch.zeros((), device=text).device
    except (AssertionError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be used: {str(error).splitlines()[0]}") from error


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="a folder of training images")
    parser.add_argument("--val", type=Path, help="a folder of validation images, a folder for each class")
    parser.add_argument("--weights", type=Path, help="a state dict of torchvision's resnet50, instead of a download")
    parser.add_argument("--random", action="store_true", help="random weights and images, for time and memory alone")
    parser.add_argument("--images", type=count, default=2560)
    parser.add_argument("--flops", type=share, default=1 / 1.73, help="the share to keep")
    parser.add_argument("--recipe", default="psp", choices=("psp", "fast", "best", "magnitude"))
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images, and of everything else")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=count, default=64, help="of reading and testing")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    parser.add_argument("--val-limit", type=count, help="validation images, evenly spaced; all where nothing is said")
    parser.add_argument("--out", type=Path, help="where to save the smaller network")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    options = parser.parse_args(words)
    if not options.random and not (options.train and options.val):
        parser.error("give --train and --val, or --random")
    return options


def main() -> None:
    """Run the recipe and print what came of it."""
    options = arguments()
    try:
        found = measure(options)
    except FxpruneError as error:  # one that a process raised which reads images brings the traceback from there
        raise SystemExit(f"error: {str(error).strip().splitlines()[-1]}") from error
    except KeyboardInterrupt:
        left = f": the same command goes on from {state_folder(options.out)}" if options.out else ""
        print(f"\ninterrupted{left}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    print(json.dumps(found) if options.json else summary(found))


if __name__ == "__main__":
    main()
