"""Cost: FLOPs and parameters as polynomials in the widths of the groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import flop_counter

from fxprune.coupling.flow import argument, concrete, source_of
from fxprune.types import Coupling, Field

aten = torch.ops.aten
Shape = Sequence[sympy.Expr]


@dataclass(frozen=True, eq=False)
class Cost:
    """What a network costs as a function of its widths.

    symbols: the width of each group, by the group's name.
    widths: the widths of the original.
    flops: as torch.utils.flop_counter counts them on the captured graph, at batch 1.
    params: elements of the parameters.
    by_node: the FLOPs of each node that has any.
    """

    symbols: Mapping[str, sympy.Symbol]
    widths: Mapping[str, int]
    flops: sympy.Expr
    params: sympy.Expr
    by_node: Mapping[str, sympy.Expr]

    def evaluate(self, widths: Mapping[str, int] | None = None) -> dict[str, int]:
        """FLOPs and parameters at these widths; a group that is left out keeps everything."""
        values = {**self.widths, **(widths or {})}
        flops, params = self._compiled(*(values[name] for name in self.symbols))
        return {"flops": round(flops), "params": round(params)}

    @cached_property
    def _compiled(self) -> Callable[..., tuple[float, float]]:
        made: Callable[..., tuple[float, float]] = sympy.lambdify(
            list(self.symbols.values()), (self.flops, self.params), "math"
        )
        return made


def cost(gm: fx.GraphModule, coupling: Coupling) -> Cost:
    """The cost of a captured graph in the widths of its groups."""
    symbols = {
        group.name: sympy.Symbol(f"w{index}", integer=True, positive=True)
        for index, group in enumerate(coupling.groups)
    }
    sizes = _Sizes(coupling, list(symbols.values()), _batch_symbols(gm))
    by_node = {}
    for node in gm.graph.nodes:
        count = FLOPS.get(node.target)
        if count is not None:
            by_node[node.name] = sympy.sympify(count(node, sizes))
    seen = {id(parameter): (name, parameter) for name, parameter in reversed(list(gm.named_parameters()))}
    params = [
        sympy.prod(sizes.sizes(parameter.shape, coupling.param_fields.get(name, ())))
        for name, parameter in seen.values()
    ]
    return Cost(
        symbols=symbols,
        widths={group.name: group.width for group in coupling.groups},
        flops=sympy.Add(*by_node.values()),
        params=sympy.Add(*params),
        by_node=by_node,
    )


@dataclass(frozen=True)
class _Sizes:
    """Sizes of tensors as expressions in the widths."""

    coupling: Coupling
    symbols: Sequence[sympy.Symbol]
    batch: frozenset[sympy.Symbol]

    def of(self, node: fx.Node) -> list[sympy.Expr]:
        """The shape of a node's value, the batch being 1."""
        return self.sizes(node.meta["val"].shape, self.coupling.fields.get(node.name, ()))

    def sizes(self, shape: Iterable[Any], fields: Sequence[Field]) -> list[sympy.Expr]:
        """A shape in which each field makes its axis symbolic."""
        sizes = [self._number(size) for size in shape]
        for item in fields:
            sizes[item.axis] = self._along(item)
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
        total = sympy.Integer(int((row == 0).sum()))
        for group, symbol in zip(self.coupling.groups, self.symbols, strict=True):
            present = int(((row >= group.offset) & (row < group.offset + group.width)).sum())
            if present:
                total += sympy.Rational(present, group.width) * symbol
        return total


def _batch_symbols(gm: fx.GraphModule) -> frozenset[sympy.Symbol]:
    """The symbols of dimension 0 of the inputs."""
    values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    leading: list[Any] = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim]
    return frozenset(s for size in leading if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols)


Count = Callable[[fx.Node, _Sizes], sympy.Expr]
FLOPS: dict[Any, Count] = {}


def flops(*targets: Any) -> Callable[[Count], Count]:
    """Register the FLOPs of an op."""

    def register(function: Count) -> Count:
        FLOPS.update(dict.fromkeys(targets, function))
        return function

    return register


@flops(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
       aten.conv3d.padding)  # fmt: skip
def _(node: fx.Node, sizes: _Sizes) -> sympy.Expr:
    source, weight = argument(node, "input"), argument(node, "weight")
    return flop_counter.conv_flop_count(sizes.of(source), sizes.of(weight), sizes.of(node))


@flops(aten.linear.default)
def _(node: fx.Node, sizes: _Sizes) -> sympy.Expr:
    outer, inner = sizes.of(argument(node, "weight"))
    rows = sympy.prod(sizes.of(argument(node, "input"))[:-1])
    return 2 * rows * outer * inner


@flops(aten.matmul.default, aten.mm.default, aten.bmm.default)
def _(node: fx.Node, sizes: _Sizes) -> sympy.Expr:
    return 2 * sympy.prod(sizes.of(node)) * sizes.of(source_of(node))[-1]
