"""Which torch.nn module a call of an ATen operator is, built from the call's own tensors and arguments.

Modules that own tensors have one function each in OWNING, found by operator: it takes the arguments by their schema
names, with parameters and buffers as tensors, and returns the module; None where no module of torch.nn makes this
call. Parameter-free modules need no function: FREE says which classes a call can be, and their constructors name
their arguments as the operator's schema does. Modules are built on the meta device: the caller puts the tensors in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxprune.codegen.arguments import compact, defaults, rank

aten = torch.ops.aten
Arguments = Mapping[str, Any]
Owning = Callable[[Arguments], nn.Module | None]

OWNING: dict[OpOverload, Owning] = {}


def owning(*operators: OpOverload) -> Callable[[Owning], Owning]:
    """Registers how to build the module that owns the tensors of a call."""

    def register(build: Owning) -> Owning:
        OWNING.update(dict.fromkeys(operators, build))
        return build

    return register


def _family(name: str, dims: int) -> Callable[..., nn.Module]:
    """The 1d, 2d or 3d member of a family of torch.nn."""
    member: Callable[..., nn.Module] = getattr(nn, f"{name}{dims}d")
    return member


@owning(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@owning(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution(a: Arguments) -> nn.Module | None:
    """nn.Conv1d, nn.Conv2d, nn.Conv3d."""
    weight: Tensor = a["weight"]
    return _family("Conv", weight.ndim - 2)(
        weight.shape[1] * a["groups"],
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=compact(a["stride"]),
        padding=a["padding"] if isinstance(a["padding"], str) else compact(a["padding"]),
        dilation=compact(a["dilation"]),
        groups=a["groups"],
        bias=a["bias"] is not None,
    )


@owning(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(a: Arguments) -> nn.Module | None:
    """nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d."""
    weight: Tensor = a["weight"]
    return _family("ConvTranspose", weight.ndim - 2)(
        weight.shape[0],
        weight.shape[1] * a["groups"],
        tuple(weight.shape[2:]),
        stride=compact(a["stride"]),
        padding=compact(a["padding"]),
        output_padding=compact(a["output_padding"]),
        groups=a["groups"],
        bias=a["bias"] is not None,
        dilation=compact(a["dilation"]),
    )


@owning(aten.linear.default)
def linear(a: Arguments) -> nn.Module | None:
    """nn.Linear."""
    return nn.Linear(a["weight"].shape[1], a["weight"].shape[0], bias=a["bias"] is not None)


@owning(aten.batch_norm.default)
def batch_norm(a: Arguments) -> nn.Module | None:
    """nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d. In evaluation a momentum of None reads as 0."""
    width = next((a[name].shape[0] for name in ("weight", "running_mean") if a[name] is not None), None)
    if rank(a["input"]) < 2 or width is None or a["training"] is not (a["running_mean"] is None):
        return None
    tracked = a["running_mean"] is not None
    kind = _family("BatchNorm", max(1, rank(a["input"]) - 2))
    return kind(width, a["eps"], a["momentum"] or None, affine=a["weight"] is not None, track_running_stats=tracked)


@owning(aten.layer_norm.default)
def layer_norm(a: Arguments) -> nn.Module | None:
    """nn.LayerNorm with parameters."""
    return nn.LayerNorm(tuple(a["normalized_shape"]), a["eps"], bias=a["bias"] is not None)


@owning(aten.group_norm.default)
def group_norm(a: Arguments) -> nn.Module | None:
    """nn.GroupNorm with parameters."""
    return nn.GroupNorm(a["num_groups"], a["weight"].shape[0], a["eps"])


@owning(aten.rms_norm.default)
def rms_norm(a: Arguments) -> nn.Module | None:
    """nn.RMSNorm with a weight."""
    return nn.RMSNorm(tuple(a["normalized_shape"]), a["eps"])


@owning(aten.instance_norm.default)
def instance_norm(a: Arguments) -> nn.Module | None:
    """nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d with tensors."""
    width = next((a[name].shape[0] for name in ("weight", "running_mean") if a[name] is not None), None)
    tracked = a["running_mean"] is not None
    if rank(a["input"]) < 3 or width is None or a["use_input_stats"] is tracked:
        return None
    kind = _family("InstanceNorm", rank(a["input"]) - 2)
    return kind(width, a["eps"], a["momentum"], affine=a["weight"] is not None, track_running_stats=tracked)


@owning(aten.prelu.default)
def prelu(a: Arguments) -> nn.Module | None:
    """nn.PReLU."""
    return nn.PReLU(a["weight"].numel())


@owning(aten.embedding.default)
def embedding(a: Arguments) -> nn.Module | None:
    """nn.Embedding."""
    padding = a["padding_idx"] if a["padding_idx"] >= 0 else None
    options = {"scale_grad_by_freq": a["scale_grad_by_freq"], "sparse": a["sparse"]}
    return nn.Embedding(a["weight"].shape[0], a["weight"].shape[1], padding, **options)


_GATES = {aten.lstm.input: (nn.LSTM, 4), aten.gru.input: (nn.GRU, 3)}
_PLAIN = {aten.rnn_tanh.input: "tanh", aten.rnn_relu.input: "relu"}


def recurrent_module(operator: Any, names: Sequence[str], weights: Sequence[Tensor], a: Arguments) -> nn.Module | None:
    """nn.LSTM, nn.GRU or nn.RNN with these weights under these names; None where no such module makes the call."""
    if operator not in _GATES and operator not in _PLAIN:
        return None
    kind, gates = _GATES.get(operator, (nn.RNN, 1))
    projected = [weight for name, weight in zip(names, weights, strict=True) if name.startswith("weight_hr")]
    options: dict[str, Any] = {"nonlinearity": _PLAIN[operator]} if kind is nn.RNN else {}
    options |= {"proj_size": projected[0].shape[0]} if projected else {}
    module = kind(
        weights[0].shape[1],
        weights[0].shape[0] // gates,
        a["num_layers"],
        bias=a["has_biases"],
        batch_first=a["batch_first"],
        dropout=a["dropout"],
        bidirectional=a["bidirectional"],
        **options,
    )
    return module if module._flat_weights_names == list(names) else None


FREE: dict[OpOverload, tuple[type[nn.Module], ...]] = {
    aten.relu.default: (nn.ReLU,),
    aten.relu6.default: (nn.ReLU6,),
    aten.hardtanh.default: (nn.ReLU6, nn.Hardtanh),
    aten.silu.default: (nn.SiLU,),
    aten.hardswish.default: (nn.Hardswish,),
    aten.hardsigmoid.default: (nn.Hardsigmoid,),
    aten.mish.default: (nn.Mish,),
    aten.selu.default: (nn.SELU,),
    aten.elu.default: (nn.ELU,),
    aten.leaky_relu.default: (nn.LeakyReLU,),
    aten.gelu.default: (nn.GELU,),
    aten.sigmoid.default: (nn.Sigmoid,),
    aten.tanh.default: (nn.Tanh,),
    aten.log_sigmoid.default: (nn.LogSigmoid,),
    aten.softplus.default: (nn.Softplus,),
    aten.softmax.int: (nn.Softmax,),
    aten.log_softmax.int: (nn.LogSoftmax,),
    aten.max_pool1d.default: (nn.MaxPool1d,),
    aten.max_pool2d.default: (nn.MaxPool2d,),
    aten.max_pool3d.default: (nn.MaxPool3d,),
    aten.avg_pool1d.default: (nn.AvgPool1d,),
    aten.avg_pool2d.default: (nn.AvgPool2d,),
    aten.avg_pool3d.default: (nn.AvgPool3d,),
    aten.adaptive_avg_pool1d.default: (nn.AdaptiveAvgPool1d,),
    aten.adaptive_avg_pool2d.default: (nn.AdaptiveAvgPool2d,),
    aten.adaptive_avg_pool3d.default: (nn.AdaptiveAvgPool3d,),
    aten.flatten.using_ints: (nn.Flatten,),
    aten.dropout.default: (nn.Dropout,),
    aten.feature_dropout.default: (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    aten.alpha_dropout.default: (nn.AlphaDropout,),
    aten.feature_alpha_dropout.default: (nn.FeatureAlphaDropout,),
    aten.pad.default: (
        *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
        *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
        *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
        *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
        *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    ),
    aten.pixel_shuffle.default: (nn.PixelShuffle,),
    aten.pixel_unshuffle.default: (nn.PixelUnshuffle,),
    aten.channel_shuffle.default: (nn.ChannelShuffle,),
    aten.layer_norm.default: (nn.LayerNorm,),
}

# What a class says by its name, or leaves to the backend, so that its constructor need not take it.
_SAID_BY_CLASS = {"min_val", "max_val", "mode", "value", "train", "cudnn_enable"}


def free_module(operator: OpOverload, kind: type[nn.Module], a: Arguments) -> nn.Module | None:
    """The parameter-free module of class `kind` that makes this call; None where its constructor cannot say so."""
    if kind not in FREE.get(operator, ()) or a.get("train") is True:
        return None
    accepted = inspect.signature(kind).parameters
    default = defaults(operator)
    options: dict[str, Any] = {"elementwise_affine": False} if kind is nn.LayerNorm else {}
    for name, value in list(a.items())[1:]:
        parameter = "padding" if name == "pad" else name
        if any(isinstance(item, fx.Node) for item in (value if isinstance(value, (list, tuple)) else [value])):
            return None
        if parameter in accepted:
            options |= {} if value is None or value == [] else {parameter: compact(value)}
        elif name in default and name not in _SAID_BY_CLASS and value != default[name]:
            return None
    return kind(**options)
