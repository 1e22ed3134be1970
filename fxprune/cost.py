"""Cost: FLOPs and parameters as polynomials in the widths of the groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, eq=False)
class Cost:
    """What a network costs as a function of its widths.

    symbols: the width of each group, by the group's name.
    widths: the widths of the original.
    flops: as torch.utils.flop_counter counts them on the captured graph, at batch 1.
    params: elements of the parameters.
    by_node: the FLOPs of each node that has any.
    uncounted: those of them that torch.utils.flop_counter counts as none, so that the formula is ours.
    """

    symbols: Mapping[str, sympy.Symbol]
    widths: Mapping[str, int]
    flops: sympy.Expr
    params: sympy.Expr
    by_node: Mapping[str, sympy.Expr]
    uncounted: tuple[str, ...] = ()

    def evaluate(self, widths: Mapping[str, int] | None = None) -> dict[str, int]:
        """FLOPs and parameters at these widths; a group that is left out keeps everything."""
        values = {**self.widths, **(widths or {})}
        flops, params = self._compiled(*(values[name] for name in self.symbols))
        return {"flops": round(flops), "params": round(params)}

    def evaluate_many(self, widths: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """As `evaluate`, for many networks at once: widths and costs are arrays, broadcast against one another."""
        values = [np.asarray(widths.get(name, self.widths[name]), dtype=np.float64) for name in self.symbols]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        flops, params = (np.broadcast_to(np.rint(count), shape) for count in self._compiled_for_arrays(*values))
        return {"flops": flops.astype(np.int64), "params": params.astype(np.int64)}

    @cached_property
    def _compiled_for_arrays(self) -> Callable[..., tuple[Any, Any]]:
        made: Callable[..., tuple[Any, Any]] = sympy.lambdify(
            list(self.symbols.values()), (self.flops, self.params), "numpy", cse=True
        )
        return made

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
    sizes = Sizes(coupling, list(symbols.values()), _batch_symbols(gm))
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
        by_node=by_node,
        uncounted=tuple(node.name for node in gm.graph.nodes if node.target in UNCOUNTED),
    )


def _batch_symbols(gm: fx.GraphModule) -> frozenset[sympy.Symbol]:
    """The symbols of dimension 0 of the inputs."""
    values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
    leading: list[Any] = [value.shape[0] for value in values if isinstance(value, torch.Tensor) and value.ndim]
    return frozenset(s for size in leading if isinstance(size, torch.SymInt) for s in size.node.expr.free_symbols)
