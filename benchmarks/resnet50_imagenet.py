"""ResNet-50 on ImageNet with 1.73 times fewer FLOPs, from 2,560 unlabelled training images: the recipe of the paper.

    python benchmarks/resnet50_imagenet.py --train ILSVRC2012/train --val ILSVRC2012/val

Both folders hold images in a folder for each class, as torchvision's ImageFolder reads them; --train may be any folder
of images, for their labels are not looked at. The weights are torchvision's IMAGENET1K_V1 (76.13 % top-1), downloaded,
or those of --weights. It prints the accuracy on the whole of --val before and after, the time, and the peak memory.

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

WEIGHTS = ResNet50_Weights.IMAGENET1K_V1
SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
CLASSES = 1000


class Images(Dataset[tuple[Tensor, int]]):
    """Image files with labels, resized and cropped as the weights want it: [3, 224, 224]."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self.files = files
        self.transform = WEIGHTS.transforms()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def files_of(folder: Path) -> list[tuple[Path, int]]:
    """All images below a folder, sorted, each with the position of its class folder among all of them.

    Exits with one line where there are none.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder")
    labels = {name: label for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir()))}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [(path, labels.get(folder / path.relative_to(folder).parts[0], -1)) for path in found]


def calibration(options: argparse.Namespace) -> Tensor:
    """A draw of the training images, or random ones: [images, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.random:
        return torch.randn(options.images, 3, 224, 224, generator=generator)
    files = files_of(options.train)
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


def loader(files: Sequence[tuple[Path, int]], options: argparse.Namespace) -> DataLoader[tuple[Tensor, int]]:
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
            model.load_state_dict(torch.load(options.weights, weights_only=True))
        else:
            model.load_state_dict(WEIGHTS.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        where = options.weights or "torchvision's server (--weights takes a file)"
        raise SystemExit(f"no weights from {where}: {str(error).splitlines()[0]}") from error
    return model.eval()


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Give a random network the BatchNorm statistics of these images, so that signals keep their size; in place."""
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
    model.train()(images)
    model.eval()


@torch.inference_mode()
def top1(model: nn.Module, options: argparse.Namespace, title: str) -> float:
    """The share of the validation images that are classified rightly, in percent."""
    files = files_of(options.val)
    classes = {label for _, label in files}
    files = files[:: max(1, len(files) // (options.val_limit or len(files)))][: options.val_limit]
    if classes != set(range(CLASSES)):
        print(f"{options.val} has {len(classes)} class folders, not {CLASSES}: no true top-1", file=sys.stderr)
    hits = done = 0
    for x, y in loader(files, options):
        hits += int((model(x.to(options.device)).argmax(1).cpu() == y).sum())
        done += len(y)
        show(title, done, len(files))
    return 100 * hits / done


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prune, and what came of it."""
    model = network(options).to(options.device)
    images = calibration(options)
    if options.random:
        settle(model, images[:16].to(options.device))
    before = None if options.random else top1(model, options, "test before")
    cuda = options.device.startswith("cuda")
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
        "top1_after": None if options.random else top1(result.model, options, "test after"),
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


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="a folder of training images")
    parser.add_argument("--val", type=Path, help="a folder of validation images, a folder for each class")
    parser.add_argument("--weights", type=Path, help="a state dict of torchvision's resnet50, instead of a download")
    parser.add_argument("--random", action="store_true", help="random weights and images, for time and memory alone")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--flops", type=float, default=1 / 1.73, help="the share to keep")
    parser.add_argument("--recipe", default="psp")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of images, and of everything else")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64, help="of reading and testing")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read images")
    parser.add_argument("--val-limit", type=int, help="validation images, evenly spaced; all where nothing is said")
    parser.add_argument("--out", type=Path, help="where to save the smaller network")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    options = parser.parse_args()
    if not options.random and not (options.train and options.val):
        parser.error("give --train and --val, or --random")
    return options


def main() -> None:
    """Run the recipe and print what came of it."""
    options = arguments()
    found = measure(options)
    print(json.dumps(found) if options.json else summary(found))


if __name__ == "__main__":
    main()
