"""Torch-Pruning on a network of the zoo, judged by the same oracle.

It prunes half of every group at random, as its README and examples do it: the output layers are ignored, the heads of
fused attention are declared, and the attributes that its examples correct afterwards are corrected.

What it removed is found without looking into it: before it prunes, every element of every parameter is replaced by its
position. The positions that are left say which elements stay, and so both what the pruned network holds and what is
zero in the original that it must agree with. Normalisations are given their statistics over the channels that stay.
"""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.models import Network, build
from benchmarks.oracle import TOLERANCE, relative_error
from benchmarks.statistics_over_kept import group_norm, layer_norm, rms_norm


def examine(spec: str, outputs: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """Findings, stage by stage.

    outputs: parameters of the layers that make the outputs, for networks of features.
    limit: seconds of processor time for building the dependency graph and pruning.
    """
    timm.layers.set_fused_attn(False)  # as in its examples: it does not know the fused kernel
    yield {"stage": "building"}
    network = build(spec)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    original = network.model.double().requires_grad_(True)
    pruned = copy.deepcopy(original)
    example = network.example.double()
    yield {"stage": "pruning"}
    started = time.process_time()
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        _prune(pruned, example[:1], network, outputs)
    except TimeoutError:
        yield {"verdict": f"timeout of {limit:.0f} s"}
        return
    except Exception as error:  # noqa: BLE001 (whatever it raises is its verdict)
        yield {"verdict": "crash", "reason": f"{type(error).__name__}: {error}"[:300]}
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    yield {"seconds": time.process_time() - started, "stage": "oracle"}
    yield from _judged(original, pruned, example)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _prune(model: nn.Module, example: Tensor, network: Network, outputs: Sequence[str]) -> None:
    import torch_pruning as tp

    modules: list[Any] = list(model.modules())  # Any, for they are asked for attributes of their own
    heads = {
        getattr(module, name): module.num_heads
        for module in modules
        for name in ("qkv", "qkv_proj")
        if hasattr(module, "num_heads") and isinstance(getattr(module, name, None), nn.Linear)
    }
    vision = [module for module in modules if hasattr(module, "conv_proj") and hasattr(module, "hidden_dim")]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=_output_layers(model, network.outputs, outputs),
        num_heads=heads,
        in_channel_groups={},
        out_channel_groups={},
        round_to=vision[0].encoder.layers[0].num_heads if vision else None,
    )
    _replace_by_positions(model)
    pruner.step()
    for attention in modules:
        for name in ("qkv", "qkv_proj"):
            layer: Any = getattr(attention, name, None)
            if layer in heads:
                attention.num_heads = pruner.num_heads[layer]
                attention.head_dim = layer.out_features // (3 * attention.num_heads)
                attention.attn_dim = attention.num_heads * attention.head_dim
    for transformer in vision:
        transformer.hidden_dim = transformer.conv_proj.out_channels


def _output_layers(model: nn.Module, width: int | None, outputs: Sequence[str]) -> list[nn.Module]:
    """The layers with as many outputs as there are classes; for networks of features those that were named."""
    if width is not None:
        layers = (module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)))
        return [layer for layer in layers if len(layer.weight) == width]
    return [model.get_submodule(name.rpartition(".")[0]) for name in outputs]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


@torch.no_grad()
def _replace_by_positions(model: nn.Module) -> None:
    for tensor in _tensors(model).values():
        tensor.copy_(torch.arange(tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape))


def _judged(original: nn.Module, pruned: nn.Module, example: Tensor) -> Iterator[dict[str, Any]]:
    """Put the numbers back, zero in the original what is gone, and compare the outputs."""
    stays: dict[int, Tensor] = {}
    shrunk = 0
    left = _tensors(pruned)
    with torch.no_grad():
        for name, tensor in _tensors(original).items():
            positions = left[name].long()
            left[name].copy_(tensor.flatten()[positions])
            mask = torch.zeros(tensor.numel(), dtype=torch.bool)
            mask[positions.flatten()] = True
            stays[id(tensor)] = mask.reshape(tensor.shape)
            tensor.mul_(stays[id(tensor)])
            shrunk += tensor.numel() * (isinstance(tensor, nn.Parameter) and positions.shape != tensor.shape)
        count = sum(parameter.numel() for parameter in original.parameters())
        yield {"share": shrunk / count}
        if not shrunk:
            yield {"verdict": "nothing pruned"}
            return
        with KeptStatistics(stays):
            wanted = pytree.tree_leaves(original(example))
        try:
            found = pytree.tree_leaves(pruned(example))
        except Exception as error:  # noqa: BLE001 (whatever it raises is its verdict)
            yield {"verdict": "forward fails", "reason": f"{type(error).__name__}: {error}"[:300]}
            return
    worst = max(relative_error(one, other) for one, other in zip(found, wanted, strict=True))
    yield {"verdict": "exact" if worst <= TOLERANCE else "wrong output", "error": min(worst, 1e300)}


class KeptStatistics(TorchFunctionMode):
    """Inside, normalisations take their statistics over the channels that stay.

    stays: which elements stay, by the identity of the weight; a normalisation without a weight goes by what is zero.
    """

    def __init__(self, stays: dict[int, Tensor]) -> None:
        super().__init__()
        self.stays = stays

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _OVER_KEPT:
            return func(*args, **kwargs)
        root_mean_square = func in (F.rms_norm, torch.rms_norm)
        names = ["input", "shape", "weight", *([] if root_mean_square else ["bias"]), "eps"]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x, weight = given["input"], given.get("weight")
        channels = 1 if func in (F.group_norm, torch.group_norm) else -1
        if weight is not None and id(weight) in self.stays:
            kept = self.stays[id(weight)]
        else:
            kept = (x != 0).movedim(channels, -1).flatten(0, -2).any(0)
        view = [1] * x.ndim
        view[channels] = -1
        shape = given.get("shape", given.get("normalized_shape", given.get("num_groups")))
        eps = {"eps": given["eps"]} if given.get("eps") is not None else {}
        bias = {} if root_mean_square else {"bias": given.get("bias")}
        normalised: Tensor = _OVER_KEPT[func](kept.reshape(view), x, shape, weight, **bias, **eps)
        return normalised


_OVER_KEPT: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
}
