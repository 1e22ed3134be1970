"""FLOPs of each op as polynomials in the widths. One short function an op, in one dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import flop_counter

from fxprune.calls import RECURRENT, argument, concrete, source_of
from fxprune.types import Coupling, Field

aten = torch.ops.aten
Shape = Sequence[sympy.Expr]


@dataclass(frozen=True)
class Sizes:
    """Sizes of tensors as expressions in the widths.

    symbols: the width of each group of the coupling, in order.
    batch: the symbols of the batch size, which counts as 1.
    """

    coupling: Coupling
    symbols: Sequence[sympy.Symbol]
    batch: frozenset[sympy.Symbol]

    def of(self, node: fx.Node) -> list[sympy.Expr]:
        """The shape of a node's value, the batch being 1."""
        return self.sizes(node.meta["val"].shape, self.coupling.fields.get(node.name, ()))

    def sizes(self, shape: Iterable[Any], fields: Sequence[Field]) -> list[sympy.Expr]:
        """A shape in which each field makes its axis symbolic, the batch within that axis being 1, too."""
        whole = list(shape)
        sizes = [self._number(size) for size in whole]
        for item in fields:
            sizes[item.axis] = self._along(item) * sizes[item.axis] / concrete(whole[item.axis])
        return sizes

    def _number(self, size: Any) -> sympy.Expr:
        if isinstance(size, int):
            return sympy.Integer(size)
        expression = size.node.expr
        of_batch = expression.subs(dict.fromkeys(self.batch, 1))
        return of_batch if of_batch.is_Integer else sympy.Integer(concrete(size))

    def _along(self, item: Field) -> sympy.Expr:
        """How long a row of the field's axis is: each group adds in proportion to its width."""
        lines = item.ids.movedim(item.axis, -1)
        row = lines.reshape(-1, lines.shape[-1])[0]
        permanent, *present = torch.bincount(self._home[row], minlength=len(self.symbols) + 1).tolist()
        total = sympy.Integer(permanent)
        for group, symbol, count in zip(self.coupling.groups, self.symbols, present, strict=True):
            if count:
                total += sympy.Rational(count, group.width) * symbol
        return total

    @cached_property
    def _home(self) -> Tensor:
        """For each id the number of its group, from 1; 0 for the permanent."""
        widths = torch.tensor([1, *(group.width for group in self.coupling.groups)])
        return torch.repeat_interleave(torch.arange(len(widths)), widths)


Count = Callable[[fx.Node, Sizes], sympy.Expr]
FLOPS: dict[Any, Count] = {}

# Ops that torch.utils.flop_counter counts as none: their FLOPs follow our formula, and the report names them.
UNCOUNTED = frozenset({aten.lstm.input, aten.bilinear.default})


def flops(*targets: Any) -> Callable[[Count], Count]:
    """Register the FLOPs of an op."""

    def register(function: Count) -> Count:
        FLOPS.update(dict.fromkeys(targets, function))
        return function

    return register


@flops(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
       aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input,
       aten.conv_transpose3d.input)  # fmt: skip
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    source, weight = argument(node, "input"), argument(node, "weight")
    transposed = "transpose" in str(node.target)
    return flop_counter.conv_flop_count(sizes.of(source), sizes.of(weight), sizes.of(node), transposed=transposed)


@flops(aten.linear.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    return 2 * sympy.prod(sizes.of(argument(node, "input"))) * sympy.prod(sizes.of(argument(node, "weight"))[:-1])


@flops(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    return 2 * sympy.prod(sizes.of(node)) * sizes.of(source_of(node))[-1]


@flops(aten.addmm.default, aten.baddbmm.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    first = argument(node, "mat1" if node.target is aten.addmm.default else "batch1")
    return 2 * sympy.prod(sizes.of(node)) * sizes.of(first)[-1]


@flops(aten.einsum.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    inputs = argument(node, "equation").replace(" ", "").partition("->")[0].split(",")
    extent: dict[str, sympy.Expr] = {}
    for labels, source in zip(inputs, argument(node, "tensors"), strict=True):
        shape = sizes.of(source)
        lead = len(shape) - len(labels.replace("...", ""))
        names = labels.replace("...", "".join(chr(ord("0") + index) for index in range(lead)))
        extent.update({name: size for name, size in zip(names, shape, strict=True) if extent.get(name, 1) == 1})
    return 2 * sympy.prod(extent.values())


@flops(aten.scaled_dot_product_attention.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    query, key = sizes.of(argument(node, "query")), sizes.of(argument(node, "key"))
    scores = sympy.prod(query[:-1]) * key[-2]
    return 2 * scores * (query[-1] + sizes.of(argument(node, "value"))[-1])


@flops(*RECURRENT)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    matrices = [sizes.of(weight) for weight in argument(node, "params") if weight.meta["val"].ndim == 2]
    return (
        2 * sympy.prod(sizes.of(argument(node, "input"))[:-1]) * sympy.Add(*(sympy.prod(shape) for shape in matrices))
    )


@flops(aten.bilinear.default)
def _(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    return 2 * sympy.prod(sizes.of(node)[:-1]) * sympy.prod(sizes.of(argument(node, "weight")))
