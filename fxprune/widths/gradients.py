"""SNIP and GraSP: what a loss on a few labelled inputs says of each weight before training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.errors import PlanError, user_line
from fxprune.randomness import seeded
from fxprune.widths.scores import by_scores, unit_scores
from fxprune.widths.setting import Choice, Setting, method


@method
def snip(setting: Setting) -> Choice:
    """Structured SNIP: the score of a unit is the sum of |theta * dL/dtheta| over its weights.

    L is the cross-entropy of the network in training mode on `Setting.data`. Source: Lee et al., SNIP: single-shot
    network pruning based on connection sensitivity (2019), equation 6, with units for weights.
    Raises PlanError without data, without a module to train, or where they do not fit one another.
    """
    return by_scores(setting, unit_scores(setting.coupling, sensitivity(setting)))


@method
def grasp(setting: Setting) -> Choice:
    """Structured GraSP: the score of a unit is the sum of theta * (H g) over its weights; the lowest leaves first.

    g is the gradient of the L of `snip` in all parameters, H its Hessian. Removing a weight adds about -2 theta * (H g)
    to the gradient flow g^T g: units leave first whose removal adds most to it, and stay longest where it takes most.
    Scores have signs, so the parts of a unit may cancel. Source: Wang et al., Picking winning tickets before training
    by preserving gradient flow (2020), equation 8, with units for weights and no temperature. Raises as `snip` does,
    and where the network cannot be differentiated twice.
    """
    return by_scores(setting, unit_scores(setting.coupling, preserved_flow(setting)))


@torch.enable_grad()
def sensitivity(setting: Setting) -> dict[str, Tensor]:
    """|theta * dL/dtheta| of each element of each parameter."""
    weights, loss = _parameters_and_loss(setting, "snip")
    slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return {name: (weights[name] * slope).detach().abs() for name, slope in zip(weights, slopes, strict=True)}


@torch.enable_grad()
def preserved_flow(setting: Setting) -> dict[str, Tensor]:
    """theta * (H g) of each element of each parameter."""
    weights, loss = _parameters_and_loss(setting, "grasp")
    leaves = list(weights.values())
    try:
        slopes = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        flow = torch.stack([(slope * slope.detach()).sum() for slope in slopes]).sum()
        products = torch.autograd.grad(flow, leaves, materialize_grads=True)  # the gradient of g^T c at c = g is H g
    except RuntimeError as error:
        raise PlanError(f"method='grasp' differentiates the network twice; choose another method: {error}") from error
    return {name: (weights[name] * product).detach() for name, product in zip(weights, products, strict=True)}


class _TwiceDifferentiable(TorchFunctionMode):
    """Hard sigmoids in a form that has a second derivative."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def _parameters_and_loss(setting: Setting, called: str) -> tuple[dict[str, Tensor], Tensor]:
    """The parameters by name, and the loss as a function of them; model, buffers and random state stay as they are."""
    if setting.data is None:
        raise PlanError(f"method={called!r} looks at a loss: give data=(inputs, labels), a batch of training data")
    if setting.model is None:
        raise PlanError(f"method={called!r} takes gradients in training mode: give the network as an nn.Module")
    twin = copy.deepcopy(setting.model).train()
    weights = {
        name: weight.detach().clone().requires_grad_()
        for name, weight in twin.named_parameters()
        if weight.is_floating_point()
    }
    (args, kwargs), labels = _batch(setting.data, next(iter(weights.values())).device)
    try:
        with seeded(setting.seed), sdpa_kernel(SDPBackend.MATH), _TwiceDifferentiable():
            outputs = pytree.tree_leaves(functional_call(twin, weights, args, kwargs))
        return weights, F.cross_entropy(outputs[0], labels)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise PlanError(f"data=(inputs, labels) does not fit the network{user_line(error)}: {reason}") from error


def _batch(data: Any, device: torch.device) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], Tensor]:
    """Positional and keyword inputs, and the labels. Raises PlanError where the data are no pair."""
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise PlanError(f"data= must be a pair, (inputs, labels), not {type(data).__name__}")
    inputs, labels = pytree.tree_map_only(Tensor, lambda value: value.to(device), tuple(data))
    if isinstance(inputs, Mapping):
        return ((), dict(inputs)), labels
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}), labels
