"""The networks of the zoo: which, how they are built, and with which numbers in them.

A network goes by its specification `library/kind:name`. The list is chosen by rule and kept in zoo_models.txt:

- torchvision: every classification, segmentation and video model, and the backbone of every detector;
- timm: of every family the variant with the fewest parameters. A family is a module of timm and the letters that the
  name begins with: `resnet18` and `resnet50d` are one, `resnest14d` is another.

`python -m benchmarks.models` chooses anew (two minutes) and prints the list, smallest first.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models import list_models, list_modules
from torch import Tensor, nn
from torchvision.models import detection, get_model, segmentation, video

LIST = Path(__file__).with_name("zoo_models.txt")
SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 512)
FRAMES = 16
CLASSES = {"torchvision/classification": 1000, "torchvision/segmentation": 21, "torchvision/video": 400}


@dataclass(frozen=True)
class Entry:
    """A network of the list, with its number of parameters."""

    spec: str
    params: int

    @property
    def kind(self) -> str:
        """The part before the colon."""
        return self.spec.partition(":")[0]


@dataclass(frozen=True)
class Network:
    """A built network with random numbers, its example of batch 2, and what it is asked to predict.

    outputs: how many channels its output layers have; None where the network returns features.
    """

    model: nn.Module
    example: Tensor
    outputs: int | None


def entries() -> list[Entry]:
    """The networks of the zoo, smallest first."""
    lines = (line.split() for line in LIST.read_text().splitlines() if not line.startswith("#"))
    return [Entry(spec, int(params)) for spec, params in lines]


def build(spec: str, seed: int = 0) -> Network:
    """A network with random weights, statistics and affines, and the smallest example that it accepts.

    Raises RuntimeError where it accepts no square image of `SIZES` nor of its own size.
    """
    torch.manual_seed(seed)
    model = _model(spec).eval()
    randomize(model, torch.Generator().manual_seed(seed))
    kind = spec.partition(":")[0]
    for size in _sizes(model):
        shape = (2, 3, FRAMES, size, size) if kind == "torchvision/video" else (2, 3, size, size)
        example = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if _accepts(model, example):
            return Network(model, example, getattr(model, "num_classes", None) or CLASSES.get(kind))
    raise RuntimeError(f"{spec} accepts no image of {_sizes(model)} pixels")


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter and statistic that was set to a constant random values, in place.

    Zeros and ones hide errors: a layer scale of 1e-6 or a zeroed last normalisation would hide a branch.
    """
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2:
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith(("running_var", "running_mean")):
                tensor.copy_(0.5 + noise if name.endswith("running_var") else 0.2 * (noise - 0.5))
            elif isinstance(tensor, nn.Parameter) and bool((tensor == tensor.flatten()[0]).all()):
                tensor.copy_(0.5 + noise if name.endswith("weight") or tensor.flatten()[0] else 0.2 * (noise - 0.5))
                if tensor.ndim > 1 and name.endswith("weight"):
                    tensor.sub_(1).div_(tensor[0].numel() ** 0.5)


def _accepts(model: nn.Module, example: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(example)
    except Exception:  # noqa: BLE001 (any complaint about the size means the next one)
        return False
    return True


def _sizes(model: nn.Module) -> list[int]:
    """The image sizes to try, smallest first; the only one where the network fixes it."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = (config.get("input_size") or (3, SIZES[-1]))[-1]
    if config.get("fixed_input_size"):
        return [own]
    return [size for size in SIZES if size < own] + [own]


def _model(spec: str) -> nn.Module:
    kind, _, name = spec.partition(":")
    if kind == "timm":
        made: nn.Module = timm.create_model(name, pretrained=False)
        return made
    if kind == "torchvision/detection":
        backbone: nn.Module = get_model(name, weights=None, weights_backbone=None).backbone
        return backbone
    options: dict[str, Any] = {"weights": None}
    if kind == "torchvision/segmentation":
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    classifier: nn.Module = get_model(name, **options)
    return classifier


def choose() -> Iterator[Entry]:
    """The list by the rule above, smallest first."""
    kinds: dict[str, Callable[[], list[str]]] = {
        "torchvision/classification": lambda: torchvision.models.list_models(torchvision.models),
        "torchvision/segmentation": lambda: torchvision.models.list_models(segmentation),
        "torchvision/video": lambda: torchvision.models.list_models(video),
        "torchvision/detection": lambda: torchvision.models.list_models(detection),
    }
    found = [Entry(f"{kind}:{name}", _count(f"{kind}:{name}")) for kind, names in kinds.items() for name in names()]
    for module in list_modules():
        families: dict[str, list[Entry]] = {}
        for name in list_models(module=module):
            letters = re.match(r"[a-z]+", name)
            assert letters is not None
            families.setdefault(letters.group(), []).append(Entry(f"timm:{name}", _count(f"timm:{name}")))
        found += [min(family, key=_order) for family in families.values()]
    yield from sorted(found, key=_order)


def _order(entry: Entry) -> tuple[int, str]:
    return entry.params, entry.spec


def _count(spec: str) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = _model(spec)
        except NotImplementedError:  # its constructor computes with tensors
            model = _model(spec)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    print(
        f"# chosen by `python -m benchmarks.models` with torchvision {torchvision.__version__}, timm {timm.__version__}"
    )
    for chosen in choose():
        print(chosen.spec, chosen.params, flush=True)
