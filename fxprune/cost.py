"""Cost: FLOPs, parameters and activation memory as polynomials in the widths of the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import fx

from fxprune.flops import FLOPS, UNCOUNTED, Sizes
from fxprune.types import Coupling

COUNTED = ("flops", "params")  # what every report shows; memory is counted where it is asked for


@dataclass(frozen=True, eq=False)
class Cost:
    """What a network costs as a function of its widths.

    symbols: the width of each group, by the group's name.
    widths: the widths of the original.
    flops: as torch.utils.flop_counter counts them on the captured graph, at batch 1.
    params: elements of the parameters.
    by_node: the FLOPs of each node that has any.
    memory: bytes of the inputs and of all that is computed and is no view, at batch 1: what training keeps.
    latency: nanoseconds, where they have been measured.
    uncounted: those of them that torch.utils.flop_counter counts as none, so that the formula is ours.
    """

    symbols: Mapping[str, sympy.Symbol]
    widths: Mapping[str, int]
    flops: sympy.Expr
    params: sympy.Expr
    by_node: Mapping[str, sympy.Expr]
    memory: sympy.Expr = sympy.S.Zero
    latency: sympy.Expr = sympy.S.Zero
    uncounted: tuple[str, ...] = ()

    def evaluate(self, widths: Mapping[str, int] | None = None, kinds: Sequence[str] = COUNTED) -> dict[str, int]:
        """The costs of these kinds at these widths; a group that is left out keeps everything."""
        return {kind: round(count) for kind, count in self.at(widths or {}, kinds).items()}

    def at(self, widths: Mapping[str, float], kinds: Sequence[str] = COUNTED) -> dict[str, float]:
        """As `evaluate`, at widths that need not be whole: so are the costs."""
        known = {**self.widths, **widths}
        values = [known[name] for name in self.symbols]
        return {kind: float(self._function(kind)(*values)) for kind in kinds}

    def evaluate_many(
        self, widths: Mapping[str, NDArray[Any]], kinds: Sequence[str] = COUNTED
    ) -> dict[str, NDArray[np.int64]]:
        """As `evaluate`, for many networks at once: widths and costs are arrays, broadcast against one another."""
        values = [np.asarray(widths.get(name, self.widths[name]), dtype=np.float64) for name in self.symbols]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        counts = self._function_of_arrays(tuple(kinds))(*values)
        return {
            kind: np.broadcast_to(np.rint(count), shape).astype(np.int64)
            for kind, count in zip(kinds, counts, strict=True)
        }

    def terms(self, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A cost as a posynomial: the factors [terms] and the exponents of the widths [terms, groups] of its terms."""
        if kind not in self._terms:
            polynomial = sympy.Poly(getattr(self, kind), *self.symbols.values())
            exponents, factors = zip(*polynomial.terms(), strict=True)
            self._terms[kind] = np.array(factors, dtype=np.float64), np.array(exponents, dtype=np.float64)
        return self._terms[kind]

    def _function(self, kind: str) -> Callable[..., float]:
        if kind not in self._functions:
            self._functions[kind] = sympy.lambdify(list(self.symbols.values()), getattr(self, kind), "math")
        return self._functions[kind]

    def _function_of_arrays(self, kinds: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
        if kinds not in self._functions_of_arrays:
            expressions = tuple(getattr(self, kind) for kind in kinds)
            made = sympy.lambdify(list(self.symbols.values()), expressions, "numpy", cse=True)
            self._functions_of_arrays[kinds] = made
        return self._functions_of_arrays[kinds]

    @cached_property
    def _terms(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return {}  # expanding a large network's takes seconds

    @cached_property
    def _functions(self) -> dict[str, Callable[..., float]]:
        return {}  # made when they are first asked for: a large network's take a second each

    @cached_property
    def _functions_of_arrays(self) -> dict[tuple[str, ...], Callable[..., tuple[Any, ...]]]:
        return {}


def cost(gm: fx.GraphModule, coupling: Coupling) -> Cost:
    """The cost of a captured graph in the widths of its groups."""
    symbols = {
        group.name: sympy.Symbol(f"w{index}", integer=True, positive=True)
        for index, group in enumerate(coupling.groups)
    }
    sizes = Sizes(coupling, list(symbols.values()), batch_symbols(gm))
    by_node = {
        node.name: sympy.sympify(FLOPS[node.target](node, sizes)) for node in gm.graph.nodes if node.target in FLOPS
    }
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
        memory=_memory(gm, sizes),
        by_node=by_node,
        uncounted=tuple(node.name for node in gm.graph.nodes if node.target in UNCOUNTED),
    )


def batch_symbols(gm: fx.GraphModule) -> frozenset[sympy.Symbol]:
    """The symbols of dimension 0 of the inputs."""
    values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    leading: list[Any] = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim]
    return frozenset(s for size in leading if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols)


def _memory(gm: fx.GraphModule, sizes: Sizes) -> sympy.Expr:
    """Bytes of the inputs and of the results of all calls that are no views."""
    total = sympy.Integer(0)
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and (node.op == "placeholder" or _makes_memory(node)):
            total += bytes_of(node, sizes)
    return total


def bytes_of(node: fx.Node, sizes: Sizes) -> sympy.Expr:
    """Bytes of a node's tensor, at batch 1."""
    return node.meta["val"].element_size() * sympy.prod(sizes.of(node))


def _makes_memory(node: fx.Node) -> bool:
    """Whether a call's result is memory of its own."""
    return isinstance(node.target, torch._ops.OpOverload) and not node.target.is_view
