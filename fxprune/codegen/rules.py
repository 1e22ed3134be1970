"""Operators whose spelling their name does not tell, one short function each."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxprune.codegen.arguments import compact, rank
from fxprune.codegen.spelling import Arguments, Spelling, rule

aten = torch.ops.aten


@rule(aten.slice.Tensor)
def slice_(a: Arguments) -> Spelling | None:
    """`x[:, 1:3]`."""
    if not isinstance(a["dim"], int) or a["dim"] < 0:
        return None
    whole = (slice(None),) * a["dim"]
    end = None if a["end"] == 2**63 - 1 else a["end"]
    step = None if a["step"] == 1 else a["step"]
    part = slice(a["start"] or None, end, step)
    return Spelling(operator.getitem, (a["self"], (*whole, part)), {})


@rule(aten.slice_scatter.default)
def slice_scatter(a: Arguments) -> Spelling | None:
    """`torch.slice_scatter(x, y, 1, 0, 2)`: x with y in place of `x[:, 0:2]`."""
    ends = [] if a["end"] in (None, 2**63 - 1) else [a["end"]]
    options = {} if a["step"] == 1 else {"step": a["step"]}
    return Spelling(torch.slice_scatter, (a["self"], a["src"], a["dim"], a["start"] or 0, *ends), options)


@rule(aten.select.int)
def select(a: Arguments) -> Spelling | None:
    """`x[:, 0]`."""
    if a["dim"] < 0:
        return Spelling("select", (a["self"], a["dim"], a["index"]), {})
    index = (*(slice(None),) * a["dim"], a["index"])
    return Spelling(operator.getitem, (a["self"], index if a["dim"] else a["index"]), {})


@rule(aten.index.Tensor)
def index(a: Arguments) -> Spelling | None:
    """`x[:, index]`."""
    items = tuple(slice(None) if item is None else item for item in a["indices"])
    return Spelling(operator.getitem, (a["self"], items if len(items) > 1 else items[0]), {})


@rule(aten.index_put.default)
def index_put(a: Arguments) -> Spelling | None:
    """`x.index_put((i, j), y)`; `x.index_copy(1, i, y)` or `x.index_add(1, i, y)` where one dimension is named."""
    indices = a["indices"]
    if all(isinstance(item, fx.Node) for item in indices):
        options = {"accumulate": True} if a["accumulate"] else {}
        return Spelling("index_put", (a["self"], tuple(indices), a["values"]), options)
    *whole, last = indices
    source, target = (a[name].meta["val"] for name in ("values", "self"))
    if any(whole) or rank(last) != 1 or last.meta["val"].dtype != torch.int64:
        return None
    if source.shape != (*target.shape[: len(whole)], *last.meta["val"].shape, *target.shape[len(indices) :]):
        return None
    method = "index_add" if a["accumulate"] else "index_copy"
    return Spelling(method, (a["self"], len(whole), last, a["values"]), {})


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def reversed_subtraction(a: Arguments) -> Spelling | None:
    """`1 - x`."""
    return Spelling(operator.sub, (a["other"], a["self"]), {}) if a["alpha"] == 1 else None


@rule(aten.lift_fresh_copy.default)
def lift_fresh_copy(a: Arguments) -> Spelling | None:
    """A constant's fresh copy: `x.clone()`."""
    return Spelling("clone", (a["self"],), {})


@rule(aten.constant_pad_nd.default)
def constant_pad(a: Arguments) -> Spelling | None:
    """`F.pad(x, (1, 1))`."""
    options = {"value": a["value"]} if a["value"] else {}
    return Spelling(F.pad, (a["self"], tuple(a["pad"])), options)


@rule(aten.embedding.default)
def embedding(a: Arguments) -> Spelling | None:
    """`F.embedding(indices, weight)`."""
    options = {"padding_idx": a["padding_idx"]} if a["padding_idx"] >= 0 else {}
    flags = {name: True for name in ("scale_grad_by_freq", "sparse") if a[name]}
    return Spelling(F.embedding, (a["indices"], a["weight"]), options | flags)


@rule(aten.split_with_sizes.default)
def split_with_sizes(a: Arguments) -> Spelling | None:
    """`x.split([2, 3], 1)`; `x.split(2, 1)` where all parts are equal."""
    sizes = a["split_sizes"]
    equal = all(type(size) is int for size in sizes) and len(set(sizes)) == 1
    return Spelling("split", (a["self"], sizes[0] if equal else list(sizes), a["dim"]), {})


@rule(aten._to_copy.default, aten.to.dtype_layout)
def to_copy(a: Arguments) -> Spelling | None:
    """`x.to(dtype=torch.float32)`."""
    options = {name: a[name] for name in ("dtype", "device") if a[name] is not None}
    return Spelling("to", (a["self"],), options) if options else Spelling("clone", (a["self"],), {})


@rule(aten.zero.default)
def zero(a: Arguments) -> Spelling | None:
    """`torch.zeros_like(x)`."""
    return Spelling(torch.zeros_like, (a["self"],), {})


@rule(aten.copy.default)
def copy(a: Arguments) -> Spelling | None:
    """`y.expand_as(x)` or `y.to(x.dtype)`: what x holds once y is written into it."""
    source, target = a["src"].meta["val"], a["self"].meta["val"]
    if source.dtype == target.dtype:
        return Spelling("expand_as", (a["src"], a["self"]), {})
    return Spelling("to", (a["src"], target.dtype), {}) if source.shape == target.shape else None


@rule(aten.dropout.default)
def dropout(a: Arguments) -> Spelling | None:
    """`F.dropout(x, 0.5)`, which drops in evaluation, too."""
    options = {} if a["train"] else {"training": False}
    return Spelling(F.dropout, (a["input"], a["p"]), options)


@rule(aten._weight_norm.default)
def weight_norm(a: Arguments) -> Spelling | None:
    """`torch._weight_norm(v, g)`: there is no public name."""
    return Spelling(torch._weight_norm, (a["v"], a["g"], *((a["dim"],) if a["dim"] else ())), {})


@rule(aten.im2col.default)
def im2col(a: Arguments) -> Spelling | None:
    """`F.unfold(x, 3, padding=1)`."""
    return Spelling(F.unfold, (a["self"], compact(a["kernel_size"])), _window(a))


@rule(aten.col2im.default)
def col2im(a: Arguments) -> Spelling | None:
    """`F.fold(x, (8, 8), 3, padding=1)`."""
    return Spelling(F.fold, (a["self"], compact(a["output_size"]), compact(a["kernel_size"])), _window(a))


def _window(a: Arguments) -> dict[str, Any]:
    usual = {"dilation": 1, "padding": 0, "stride": 1}
    return {name: compact(a[name]) for name, value in usual.items() if compact(a[name]) != value}


_INTERPOLATION, _OUTSIDE = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


@rule(aten.grid_sampler.default)
def grid_sample(a: Arguments) -> Spelling | None:
    """`F.grid_sample(x, grid, mode="nearest")`."""
    mode, outside = _INTERPOLATION[a["interpolation_mode"]], _OUTSIDE[a["padding_mode"]]
    options: dict[str, Any] = {} if mode == "bilinear" else {"mode": mode}
    options |= {} if outside == "zeros" else {"padding_mode": outside}
    return Spelling(F.grid_sample, (a["input"], a["grid"]), {**options, "align_corners": a["align_corners"]})


def _adaptive_max_pool(function: Callable[..., Any], a: Arguments) -> Spelling | None:
    """`F.adaptive_max_pool2d(x, 1, return_indices=True)`: the operator gives the indices, too."""
    return Spelling(function, (a["self"], compact(a["output_size"])), {"return_indices": True})


rule(aten.adaptive_max_pool1d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool1d))
rule(aten.adaptive_max_pool2d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool2d))
rule(aten.adaptive_max_pool3d.default)(partial(_adaptive_max_pool, F.adaptive_max_pool3d))


@rule(aten.sym_size.int)
def sym_size(a: Arguments) -> Spelling | None:
    """`x.size(0)`."""
    return Spelling("size", (a["self"], a["dim"]), {})


@rule(aten.hardtanh.default)
def hardtanh(a: Arguments) -> Spelling | None:
    """`F.relu6(x)` or `F.hardtanh(x, -2, 2)`."""
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Spelling(F.relu6, (a["self"],), {})
    return Spelling(F.hardtanh, (a["self"], a["min_val"], a["max_val"]), {})


def _interpolate(mode: str, antialias: bool, a: Arguments) -> Spelling | None:
    """`F.interpolate(x, size=(7, 7), mode="bilinear")`."""
    factors = a["scale_factors"]
    if a["output_size"] is not None:
        options: dict[str, Any] = {"size": compact(a["output_size"])}
    else:
        options = {"scale_factor": factors[0] if len(set(factors)) == 1 else tuple(factors)}
    if mode != "nearest":
        options["mode"] = mode
    options |= {"align_corners": True} if a.get("align_corners") else {}
    return Spelling(F.interpolate, (a["input"],), options | ({"antialias": True} if antialias else {}))


for _mode, _operators in {
    "nearest": (aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec),
    "nearest-exact": (
        *(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec),
        aten._upsample_nearest_exact3d.vec,
    ),
    "linear": (aten.upsample_linear1d.vec,),
    "bilinear": (aten.upsample_bilinear2d.vec,),
    "bicubic": (aten.upsample_bicubic2d.vec,),
    "trilinear": (aten.upsample_trilinear3d.vec,),
}.items():
    rule(*_operators)(partial(_interpolate, _mode, False))
rule(aten._upsample_bilinear2d_aa.vec)(partial(_interpolate, "bilinear", True))
rule(aten._upsample_bicubic2d_aa.vec)(partial(_interpolate, "bicubic", True))
