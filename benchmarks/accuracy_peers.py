"""Torch-Pruning at a share of the FLOPs: L1 norms, and the best of its criteria, with and without BatchNorm.

Its pruning ratio is found by bisection. It mistakes the shortcuts of the CIFAR-10 ResNets, which pad channels: what it
removes before the padding it removes at other positions behind it. There, the layers that write to the residual streams
are ignored, so that only the widths inside the blocks shrink.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.accuracy_batch_norm import batch_norms, reestimated
from benchmarks.accuracy_data import chunks, flops, kl
from benchmarks.accuracy_gradients import Gradients, gradients
from benchmarks.accuracy_rows import Made, Task

STEPS, COARSE = 4096, 256  # ratios that bisection chooses from, and while criteria are compared
FITTED = 256  # images that gradients and BatchNorm are taken from while criteria are compared
PADDED = "residual widths are held, for it mistakes shortcuts that pad channels"
PLAIN = "the network has no BatchNorm, so that nothing is measured anew"
CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "l1": ("GroupMagnitudeImportance", {"p": 1}),
    "l2": ("GroupMagnitudeImportance", {"p": 2}),
    "lamp": ("LAMPImportance", {}),
    "fpgm": ("FPGMImportance", {}),
    "scale": ("BNScaleImportance", {}),
    "taylor": ("GroupTaylorImportance", {}),
    "hessian": ("GroupHessianImportance", {}),
}


class UnreachedError(ValueError):
    """No ratio of Torch-Pruning leaves so few FLOPs."""


class Candidate(NamedTuple):
    """A criterion of Torch-Pruning; scope "global" ranks all channels together, "local" those of each layer."""

    criterion: str
    scope: str


L1 = Candidate("l1", "global")


def l1(task: Task) -> Made:
    """L1 group magnitude over all channels of the network."""
    return pruned(task, L1), notes(task)


def l1_with_batch_norm(task: Task) -> Made:
    """L1 group magnitude, with BatchNorm re-estimated."""
    return reestimated(pruned(task, L1), task.images), notes(task)


def best(task: Task) -> Made:
    """The criterion and scope whose network comes closest to the dense one on held-out calibration images."""
    return _best(task, lambda model, _: model)


def best_with_batch_norm(task: Task) -> Made:
    """The same, of the networks with BatchNorm re-estimated."""
    return _best(task, reestimated)


def notes(task: Task) -> dict[str, Any]:
    """What a reader must know of how Torch-Pruning was run."""
    found = [PADDED] if _pads_channels(task.model) else []
    found += [] if batch_norms(task.model) else [PLAIN]
    return {"note": "; ".join(found)} if found else {}


def _best(task: Task, repair: Callable[[nn.Module, Tensor], nn.Module]) -> Made:
    """Choose by the divergence on the last eighth of the calibration images; `repair` sees some of the others."""
    held = max(1, len(task.images) // 8)
    fitted, judged = task.images[:-held][:FITTED], task.images[-held:]
    dense = _answers(task.model, judged)
    known = gradients(task.model, fitted, task.seed)
    chosen, least = L1, float("inf")
    for candidate in candidates(task.model):
        try:
            small = pruned(task, candidate, known, COARSE)
        except UnreachedError:  # a global ranking of equal scores takes all or nothing
            continue
        loss = float(kl(_answers(repair(small, fitted), judged), dense).mean())
        if loss < least:
            chosen, least = candidate, loss
    found = {"criterion": f"{chosen.criterion}, {chosen.scope}"}
    return repair(pruned(task, chosen, known), task.images), found | notes(task)


def candidates(model: nn.Module) -> Iterator[Candidate]:
    """Every criterion in both scopes; BatchNorm's scale only where there is BatchNorm."""
    for criterion in CRITERIA:
        if criterion != "scale" or batch_norms(model):
            yield from (Candidate(criterion, scope) for scope in ("global", "local"))


def pruned(task: Task, candidate: Candidate, known: Gradients | None = None, steps: int = STEPS) -> nn.Module:
    """The largest network that Torch-Pruning makes with FLOPs at or below the share.

    Raises UnreachedError where no ratio leads there.
    """
    limit = task.share * flops(task.model, task.images)
    low, high, found = 0, steps, None
    while high - low > 1:
        middle = (low + high) // 2
        small = _at(task, candidate, middle / steps, known)
        if flops(small, task.images) <= limit:
            high, found = middle, small
        else:
            low = middle
    if found is None:
        raise UnreachedError(f"Torch-Pruning does not reach {task.share:.0%} of the FLOPs by {candidate}")
    return found


def _at(task: Task, candidate: Candidate, ratio: float, known: Gradients | None) -> nn.Module:
    """What Torch-Pruning leaves at a ratio."""
    import torch_pruning as tp

    model = copy.deepcopy(task.model)
    if known is not None:
        known.attach(model, candidate.criterion)
    name, options = CRITERIA[candidate.criterion]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            task.images[:1].to(next(model.parameters()).device),
            importance=getattr(tp.pruner.importance, name)(**options),
            pruning_ratio=ratio,
            global_pruning=candidate.scope == "global",
            ignored_layers=_ignored(model, task),
            in_channel_groups={},  # its default is one dict for all pruners
            out_channel_groups={},
        )
        pruner.step()
    model.zero_grad()
    return model.eval()


def _ignored(model: nn.Module, task: Task) -> list[nn.Module]:
    """The layers that make the outputs; and those that write to residual streams where shortcuts pad channels."""
    classes = _answers(task.model, task.images[:1]).shape[1]
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    outputs = [layer for layer in layers.values() if len(layer.weight) == classes]
    writers = [layer for name, layer in layers.items() if name == "conv1" or name.endswith(".conv2")]
    return [*outputs, *(writers if _pads_channels(model) else [])]


def _pads_channels(model: nn.Module) -> bool:
    """Whether shortcuts pad channels: those of the CIFAR-10 ResNets say by how many in `extra`."""
    return any(getattr(module, "extra", 0) for module in model.modules())


@torch.no_grad()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch).float().cpu() for batch in chunks(images, model)])
