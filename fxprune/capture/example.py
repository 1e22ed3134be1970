"""The example: running the model on it, telling its mistakes, and leaving the model as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import CaptureError, InputError
from fxprune.randomness import seeded

_REGISTERED = {"_parameters", "_buffers", "_modules", "training"}
_Attributes = dict[nn.Module, dict[str, tuple[Any, Any]]]


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The module in evaluation mode inside, every flag as it was after."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module in model.modules():
            if type(module).train is not nn.Module.train and not isinstance(module, torch.fx.GraphModule):
                module.train()  # drops what a module keeps of its parameters in evaluation, as timm's LeViT does
        nn.Module.train(model, False) if isinstance(model, torch.fx.GraphModule) else model.eval()  # exports refuse it
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Whatever plain attributes the forward sets inside are as they were after."""
    before = _attributes(model)
    try:
        yield
    finally:
        _restore(before)


def run_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model returns on the example: a mistake is told in its own words, before any tracing.

    Raises InputError where the inputs do not fit, and CaptureError where the result depends on attributes that the
    forward changes from call to call.
    """
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _check_values(tensors)
    before = _attributes(model)
    try:
        result = _run(model, args, kwargs)
    except Exception as error:
        given = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors)
        weights = {(p.device, p.dtype) for p in model.parameters() if p.is_floating_point()}
        have = ", ".join(f"{dtype} on {device}" for device, dtype in sorted(weights, key=str)) or "no parameters"
        raise InputError(
            f"the model does not run on the example inputs ({given}); its parameters are {have}. "
            f"{type(error).__name__}: {error}"
        ) from error
    register_dataclasses(result)
    changed = _changed(model, before)
    if changed and not _same(result, _run(model, args, kwargs)):
        raise CaptureError(
            f"the forward changes {', '.join(changed)}, and its result depends on how often it was called: a graph "
            "has no such memory. Keep it in a buffer (register_buffer), or change it outside the forward."
        )
    _restore(before)
    return result


def _check_values(tensors: list[Tensor]) -> None:
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise InputError(
            "tensors of torch.inference_mode() cannot be traced or learned from: make the inputs and call this outside "
            "of it; torch.no_grad() is no problem"
        )
    if not tensors:
        raise InputError("example_inputs holds no tensor")
    for index, tensor in enumerate(tensors):
        if tensor.ndim and not len(tensor):
            raise InputError(f"example input {index} of shape {tuple(tensor.shape)} is empty: give one sample or more")
        if tensor.is_meta:
            raise InputError(f"example input {index} is on the meta device: it has no values to run the model on")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"example input {index} of shape {tuple(tensor.shape)} holds NaN or infinity")


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One call that leaves inputs and buffers as they are, with the same random numbers every time."""
    slots = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(tensor, tensor.detach().clone()) for tensor in model.buffers()]
    try:
        with torch.no_grad(), seeded(0):
            return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    finally:
        for module, own in slots:
            module._buffers.update(own)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


def double_batch_of_one(leaf: Any) -> Any:
    """Twice the sample where a tensor holds one: torch.export takes a size of 1 for a constant."""
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == 1 else leaf


def register_dataclasses(result: Any) -> None:
    """Make torch.export take the dataclasses in a result apart. Raises CaptureError for classes that it cannot."""
    for leaf in pytree.tree_leaves(result):
        kind = type(leaf)
        if dataclasses.is_dataclass(leaf):
            torch.export.register_dataclass(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
            register_dataclasses(leaf)
        elif not isinstance(leaf, (Tensor, int, float, complex, str, bool, type(None), torch.Size, torch.dtype)):
            raise CaptureError(
                f"the forward returns a {kind.__module__}.{kind.__qualname__}, a class that torch.export cannot take "
                "apart: return tensors, or tuples, lists, dicts, named tuples or dataclasses of them, or register the "
                "class with torch.utils._pytree.register_pytree_node"
            )


def _attributes(model: nn.Module) -> _Attributes:
    """Each module's plain attributes, with what tells whether they were changed in place."""
    return {
        module: {name: (value, _mark(value)) for name, value in vars(module).items() if name not in _REGISTERED}
        for module in model.modules()
    }


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._version
    return copy.copy(value) if isinstance(value, (list, dict, set)) else None


def _changed(model: nn.Module, before: _Attributes) -> list[str]:
    """The dotted names of attributes that are not what they were."""
    names = {module: name for name, module in model.named_modules()}
    found = []
    for module, old in before.items():
        for name, value in vars(module).items():
            if name in _REGISTERED:
                continue
            there, mark = old.get(name, (None, None))
            if value is not there or name not in old or not _unchanged(value, mark):
                found.append(f"self.{names[module]}.{name}".replace("..", "."))
    return found


def _unchanged(value: Any, mark: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value._version == mark)
    if isinstance(value, (list, dict, set)):
        same = len(value) == len(mark)
        if isinstance(value, dict):
            return same and all(key in mark and mark[key] is item for key, item in value.items())
        return same and all(a is b for a, b in zip(value, mark, strict=True))
    return True


def _restore(before: _Attributes) -> None:
    for module, old in before.items():
        own = vars(module)
        for name in [name for name in own if name not in old and name not in _REGISTERED]:
            del own[name]
        for name, (value, mark) in old.items():
            own[name] = value
            if isinstance(value, list):
                value[:] = mark
            elif isinstance(value, (dict, set)) and not _unchanged(value, mark):
                value.clear()
                value.update(mark)


def _same(first: Any, second: Any) -> bool:
    """Whether two results agree exactly."""
    pairs = zip(pytree.tree_leaves(first), pytree.tree_leaves(second), strict=True)
    return all(
        torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if isinstance(a, Tensor) else bool(a == b)
        for a, b in pairs
    )
