"""The zoo's oracle, in float64: removing units must equal setting their slices to zero in the original.

`whole` shrinks a graph under a plan and compares the outputs. `Local` does the same for one group at a time, and looks
only at the part of the graph where the group is: every call that the group touches is run twice, on values with zeros
and on shortened ones, and the results must agree at the positions that stay. Behind the last such call nothing differs
any more, so that the rest of the graph need not be run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxprune as fp
from benchmarks.statistics_over_kept import OVER_KEPT
from fxprune.capture import capture_info
from fxprune.coupling.kept import Kept
from fxprune.passes.base import clone
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.sizes import RESIZE, moved_positions
from fxprune.passes.verify import in_float64

TOLERANCE = 1e-8  # as in fxprune.verify
Values = dict[str, Any]


def random_plan(
    coupling: fp.Coupling, seed: int, *, balanced: bool, only: str | None = None, heads: bool = False
) -> fp.Plan:
    """A random part of every group, or of one: half of it, or any number from a quarter to all but one."""
    chosen = random.Random(seed)
    kept = {}
    for group in coupling.groups:
        if only in (None, group.name):
            blocks = group.blocks or (tuple(range(group.width)),)
            size = len(blocks[0])
            count = (size + 1) // 2 if balanced else chosen.randint((size + 3) // 4, max(1, size - 1))
            kept[group.name] = [unit for block in blocks for unit in chosen.sample(block, count)]
    return fp.Plan(kept, heads=heads)


def whole(gm: fx.GraphModule, plan: fp.Plan) -> float:
    """The largest relative error of the network that is shrunk under `plan`."""
    return fp.verify(gm, fp.shrink(gm, plan), plan).max_error


@dataclass(frozen=True)
class Mismatch:
    """The largest relative error that was found, and the call at which it was found."""

    error: float = 0.0
    node: str = ""


class Local:
    """Checks one group after another on a captured graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        pinned = clone(gm)
        PinSizes()(pinned)
        self.coupling = fp.analyze(pinned)
        double = in_float64(pinned)
        assert isinstance(double, fx.GraphModule)
        self.double = double
        self.dense = _Recorder(self.double).record(capture_info(gm).args, capture_info(gm).kwargs)

    def check(self, plan: fp.Plan) -> Mismatch:
        """The largest error among all calls that the groups of `plan` touch."""
        walk = _Walk(self, Kept.under(self.coupling, plan))
        worst = Mismatch()
        with torch.no_grad():
            for node in list(walk.graph.nodes):
                error = walk.step(node)
                if not error <= worst.error:
                    worst = Mismatch(error, node.name)
        return worst


class _Recorder(fx.Interpreter):
    """Keeps the value of every node, by its name."""

    def record(self, args: Any, kwargs: Mapping[str, Any]) -> Values:
        self.values: Values = {}
        leaves = pytree.tree_leaves((args, dict(kwargs)))
        with torch.no_grad():
            self.run(*(_as_double(leaf) for leaf in leaves), enable_io_processing=False)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        self.values[n.name] = super().run_node(n)
        return self.values[n.name]


class _Walk:
    """One walk over a graph with two values for each node that a plan touches: with zeros, and shortened."""

    def __init__(self, local: Local, kept: Kept) -> None:
        self.graph = fx.Graph()  # a copy, for resizing may insert integers
        self.graph.graph_copy(local.double.graph, {})
        self.dense, self.kept = local.dense, kept
        self.moved = moved_positions(local.double, kept)
        self.masked: Values = {}
        self.short: Values = {}

    def step(self, node: fx.Node) -> float:
        """Run a node if the plan touches it; the error of its value."""
        if node.op == "get_attr":
            self._cut(node)
            return 0.0
        fields = self.kept.coupling.fields.get(node.name, ())
        made = node.op == "call_function" and self._leaves(fields)  # such as zeros of a size that shrinks
        if not made and not any(source.name in self.short for source in node.all_input_nodes):
            return 0.0
        if node.op != "call_function":
            return float("inf")  # an output would get shorter
        masked, short = self._defined(self._on_masked(node), fields), self._on_short(node)
        if self._leaves(fields) or not isinstance(masked, (Tensor, list, tuple)):
            self.masked[node.name], self.short[node.name] = masked, short
        return self._error(masked, short, fields)

    def _cut(self, node: fx.Node) -> None:
        """A parameter, or an index along an axis that gets shorter."""
        fields, tensor = self.kept.coupling.fields.get(node.name, ()), self.dense[node.name]
        went = self.moved.get(str(node.target))
        if self._leaves(fields) or went is not None:
            short = self.kept.cut(tensor, fields)
            self.short[node.name] = short if went is None else went.to(short)[short.long()]
            self.masked[node.name] = tensor * self._stays(fields, tensor.ndim) if went is None else tensor

    def _leaves(self, fields: Sequence[Any]) -> bool:
        """Whether units of these fields leave; for a call with several values, of any of them."""
        return any(
            self._leaves(item) if isinstance(item, tuple) else not bool(self.kept.mask[item.ids].all())
            for item in fields
        )

    def _stays(self, fields: Sequence[fp.Field], rank: int) -> Tensor:
        stays = torch.ones((1,) * rank, dtype=torch.bool)
        for item in fields:
            stays = stays & self.kept.mask[item.ids]
        return stays

    def _defined(self, masked: Any, fields: Sequence[Any]) -> Any:
        """Zero where a position that leaves holds no number, for a constant that is divided by may have been zeroed."""
        if isinstance(masked, (list, tuple)):
            return [self._defined(*pair) for pair in zip(masked, fields or [()] * len(masked), strict=True)]
        if not isinstance(masked, Tensor) or bool(masked.isfinite().all()):
            return masked
        return torch.where(self._stays(fields, masked.ndim) | masked.isfinite(), masked, 0.0)

    def _on_masked(self, node: fx.Node) -> Any:
        args, kwargs = self._values((node.args, node.kwargs), self.masked)
        if node.target in OVER_KEPT:
            source = node.all_input_nodes[0]
            stays = self._stays(self.kept.coupling.fields[source.name], args[0].ndim)
            return OVER_KEPT[node.target](stays, *args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator] # the target of a call is called

    def _on_short(self, node: fx.Node) -> Any:
        """The call on shortened values, with its integer arguments as Shrink sets them."""
        arguments: Any = (node.args, node.kwargs)
        if node.target in RESIZE:
            arguments = _updated(node, RESIZE[node.target](node, self.kept))
        args, kwargs = self._values(arguments, self.short)
        return node.target(*args, **kwargs)  # type: ignore[operator] # the target of a call is called

    def _values(self, arguments: Any, own: Values) -> Any:
        """Arguments with every node replaced by its value: its own, or the dense one where the plan does not reach."""

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, fx.Node):
                return leaf
            if leaf.name in own:
                return own[leaf.name]
            if leaf.name in self.dense:
                return self.dense[leaf.name]
            args, kwargs = self._values((leaf.args, leaf.kwargs), own)  # an integer that resizing has inserted
            return leaf.target(*args, **kwargs)  # type: ignore[operator] # the target of a call is called

        return fx.node.map_aggregate(arguments, value)

    def _error(self, masked: Any, short: Any, fields: Sequence[Any]) -> float:
        """How far the shortened value is from the positions that stay of the one with zeros."""
        if isinstance(masked, (list, tuple)):
            items = fields or [()] * len(masked)
            return max(self._error(*parts) for parts in zip(masked, short, items, strict=True))
        if not isinstance(masked, Tensor):
            return 0.0  # an integer, which shows in what is made with it
        zero = [item for item in fields if item.zero and masked.is_floating_point()]
        if zero and bool((masked * ~self._stays(zero, masked.ndim)).any()):
            return float("inf")  # a field claims zeros where there are none
        return relative_error(short, self.kept.cut(masked, fields))


def relative_error(found: Any, wanted: Any) -> float:
    """Largest absolute difference over the largest finite magnitude of `wanted`; equal infinities do not differ."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point() or not wanted.numel():
        return float(not torch.equal(found, wanted))
    difference = torch.where(found == wanted, 0.0, found - wanted).abs().max()
    scale = torch.where(wanted.isfinite(), wanted, 0.0).abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    return float((difference / scale).nan_to_num(float("inf"), float("inf")))


def _updated(node: fx.Node, changes: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an ATen call with some replaced, by their names in the schema."""
    formals = [formal.name for formal in node.target._schema.arguments]  # type: ignore[union-attr] # an OpOverload
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, value in changes.items():
        if (position := formals.index(name)) < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def _as_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
