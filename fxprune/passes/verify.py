"""Verify: the shrunk network must compute what the original computes with the removed units' slices set to zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from fxprune.calls import argument
from fxprune.capture import capture_info
from fxprune.coupling import analyze
from fxprune.coupling.check import check_plan, require_plan
from fxprune.coupling.kept import Kept
from fxprune.errors import PlanError, RewriteError, VerificationError
from fxprune.passes.base import COUPLING, DENSE, PLAN, clone, deep_copy, replace_tensors, state
from fxprune.randomness import seeded
from fxprune.types import Coupling, Plan, Verification

aten = torch.ops.aten
TOLERANCE = 1e-8  # float64 leaves about 1e-14 on the deepest networks; a wrong channel costs 1e-5 and more
VERIFICATION = "verification"


@dataclass(frozen=True, eq=False)
class Verify(PassBase):
    """Replaces nothing: proves what Shrink did, and hands on the proof.

    seed: of the random inputs that are tried besides the example.
    Postcondition: the proof is there and holds. Raises VerificationError where it does not.
    """

    seed: int = 0

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph has been shrunk."""
        if DENSE not in state(graph_module):
            raise RewriteError("nothing to verify: run Shrink first")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Compare with the oracle; the graph stays as it is."""
        found = state(graph_module)
        if VERIFICATION not in found and not found[PLAN].repeats:
            found[VERIFICATION] = verify(
                found[DENSE], graph_module, found[PLAN], coupling=found[COUPLING], seed=self.seed
            )
        return PassResult(graph_module, False)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The proof holds, where there is one."""
        proof = state(graph_module).get(VERIFICATION)
        if proof is not None and not proof.ok:
            raise VerificationError(f"the shrunk network is wrong, and was not returned. {proof}")


def verify(
    gm: fx.GraphModule, small: nn.Module, plan: Plan, *, coupling: Coupling | None = None, seed: int = 0
) -> Verification:
    """Compare a shrunk network with the oracle, in float64, on the example inputs and on random ones.

    gm: the captured original.
    small: what `shrink` made of it, or a lifted form of that. Neither is modified.
    coupling: of `gm`, where it is at hand already.

    The oracle is the original with every slice of the removed units set to zero; where a normalisation mixes channels,
    its statistics are taken over the kept ones.
    """
    if require_plan(plan).repeats:
        raise PlanError("a plan that makes units several times has no oracle: zeroing adds none")
    coupling = coupling or analyze(gm, plan.heads)
    kept = Kept.under(coupling, check_plan(coupling, plan))
    oracle = _Oracle(masked(gm, kept), kept)
    shrunk = in_float64(small)
    errors: list[list[float]] = []
    with torch.no_grad():
        for args, kwargs in _inputs(gm, seed):
            leaves = copy.deepcopy(pytree.tree_leaves((args, kwargs)))  # a forward may write into its inputs
            with _repeatable(seed, torch.float64):
                wanted = pytree.tree_leaves(oracle.run(*leaves, enable_io_processing=False))
            if any(isinstance(value, Tensor) and bool(value.isnan().any()) for value in wanted):
                continue  # a logarithm of noise, say: there is nothing to compare
            with _repeatable(seed, torch.float64):
                found = pytree.tree_leaves(shrunk(*args, **kwargs))
            errors.append([relative_error(a, b) for a, b in zip(found, wanted, strict=True)])
    if not errors:
        raise VerificationError(
            "the original with the removed units at zero gives NaN, on the example inputs and on random ones, so that "
            "nothing can be proven: give other example inputs, or verify=False"
        )
    outputs = tuple(max(column) for column in zip(*errors, strict=True))
    statistics = ", statistics of normalisations over the kept channels" if coupling.changes_statistics else ""
    sets = "1 input set" if len(errors) == 1 else f"{len(errors)} input sets"
    method = f"float64, {sets}, removed units' slices zeroed in the original{statistics}"
    return Verification(max(outputs, default=0.0), TOLERANCE, method, outputs)


def confirm(gm: fx.GraphModule, lifted: nn.Module) -> None:
    """Raise VerificationError unless a lifted network computes, on the example, what its ATen graph computes.

    Both run the same kernels on the same tensors in their own dtype, so that only rounding may tell them apart.
    """
    info = capture_info(gm)
    with torch.no_grad():
        runs = []
        for network in (gm, lifted):
            with _repeatable(0):
                args, kwargs = copy.deepcopy((info.args, dict(info.kwargs)))  # a forward may write into them
                runs.append(pytree.tree_leaves(deep_copy(network)(*args, **kwargs)))
    for wanted, found in zip(*runs, strict=True):
        error = relative_error(found, wanted)
        rounding = torch.finfo(wanted.dtype).eps if isinstance(wanted, Tensor) and _rounds(wanted) else 0.0
        if not error <= 1000 * rounding:
            raise VerificationError(f"the lifted network is off by {error:.1e} from its graph: not returned")


def relative_error(found: Any, wanted: Any) -> float:
    """Largest absolute difference over the largest magnitude of `wanted`; infinity for other shapes, values or NaN."""
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return 0.0 if type(found) is type(wanted) and found == wanted else float("inf")
    if found.shape != wanted.shape:
        return float("inf")
    if not _rounds(wanted):
        return float((found != wanted).any())
    if not wanted.numel():
        return 0.0
    gap = torch.where(found == wanted, 0.0, found - wanted).detach().abs().max()  # infinities that agree are right
    size = torch.where(wanted.isfinite(), wanted, 0.0).detach().abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    difference = gap / size
    return float(difference) if bool(torch.isfinite(difference)) else float("inf")


def _rounds(tensor: Tensor) -> bool:
    """Whether numbers of this dtype are rounded: floating-point or complex ones."""
    return tensor.is_floating_point() or tensor.is_complex()


def in_float64(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode that computes in float64, with the dtypes written into its graph as well."""
    twin = deep_copy(network).double().eval()
    if isinstance(twin, fx.GraphModule):
        _widen(twin)
    return twin


def _widen(gm: fx.GraphModule) -> None:
    """Floating dtypes among the arguments of a graph become float64, in place."""

    def widened(value: Any) -> Any:
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

    for node in gm.graph.nodes:
        node.args, node.kwargs = pytree.tree_map(widened, (node.args, node.kwargs))
        if node.op == "call_method" and node.target in ("float", "half", "bfloat16"):
            node.target = "double"
    gm.recompile()


@contextmanager
def _repeatable(seed: int, dtype: torch.dtype | None = None) -> Iterator[None]:
    """The same random numbers in every run; tensors that a forward makes are of `dtype` where it names none."""
    before = torch.get_default_dtype()
    with seeded(seed):
        torch.set_default_dtype(dtype or before)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def masked(gm: fx.GraphModule, kept: Kept) -> fx.GraphModule:
    """A float64 copy of the original with all slices of the removed units at zero."""

    def zeroed(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        stays = kept.stays(kept.coupling.param_fields.get(name, ()), tensor.ndim)
        return tensor.detach().double() * stays.to(tensor.device)

    twin = clone(gm)
    replace_tensors(twin, zeroed)
    _widen(twin)
    return twin


class _Oracle(fx.Interpreter):
    """Runs the masked original, with statistics of normalisations over channels taken over the kept ones.

    Where a removed unit divides by its own zero, the result counts as zero: nobody is to read it, but 0 * nan is nan.
    """

    def __init__(self, gm: fx.GraphModule, kept: Kept) -> None:
        super().__init__(gm)
        self.kept = kept

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.kept.coupling.changes_statistics:
            value = super().run_node(n)
        else:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = _MASKED[n.target](n, self._stays(argument(n, "input")), *args, **kwargs)
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            value = torch.where(self._stays(n).to(value.device) | value.isfinite(), value, 0)
        return value

    def _stays(self, node: fx.Node) -> Tensor:
        """Which positions of the node's value stay, broadcastable to it."""
        return self.kept.stays(self.kept.coupling.fields[node.name], node.meta["val"].ndim)


def _layer_norm(node: fx.Node, stays: Tensor, x: Tensor, shape: list[int], weight: Any = None, bias: Any = None,
                eps: float = 1e-5, *_: Any) -> Tensor:  # fmt: skip
    dims = list(range(x.ndim - len(shape), x.ndim))
    normal = _standardized(x, stays, dims, eps)
    normal = normal * weight if weight is not None else normal
    return normal + bias if bias is not None else normal


def _group_norm(node: fx.Node, stays: Tensor, x: Tensor, groups: int, weight: Any = None, bias: Any = None,
                eps: float = 1e-5, *_: Any) -> Tensor:  # fmt: skip
    split = (len(x), groups, x.shape[1] // groups, *x.shape[2:])
    inside = stays.expand(1, x.shape[1], *stays.shape[2:]).reshape(1, *split[1:3], *stays.shape[2:])
    normal = _standardized(x.reshape(split), inside, list(range(2, len(split))), eps).reshape(x.shape)
    view = (-1, *(1,) * (x.ndim - 2))
    normal = normal * weight.reshape(view) if weight is not None else normal
    return normal + bias.reshape(view) if bias is not None else normal


def _standardized(x: Tensor, stays: Tensor, dims: list[int], eps: float) -> Tensor:
    """x less its mean, over its standard deviation, both over the positions of `dims` that stay."""
    weight = stays.expand(x.shape).to(x)
    count = weight.sum(dims, keepdim=True)
    mean = (x * weight).sum(dims, keepdim=True) / count
    variance = ((x - mean).square() * weight).sum(dims, keepdim=True) / count
    return (x - mean) / (variance + eps).sqrt()


def _rms_norm(node: fx.Node, stays: Tensor, x: Tensor, shape: list[int], weight: Any = None, eps: Any = None,
              *_: Any) -> Tensor:  # fmt: skip
    dims = list(range(x.ndim - len(shape), x.ndim))
    left = stays.expand(x.shape).to(x)
    square = (x.square() * left).sum(dims, keepdim=True) / left.sum(dims, keepdim=True)
    normal = x * (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return normal * weight if weight is not None else normal


_MASKED: dict[Any, Any] = {
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.rms_norm.default: _rms_norm,
}


def _inputs(gm: fx.GraphModule, seed: int) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example inputs in float64, and random ones of the same shapes."""
    info = capture_info(gm)
    given = pytree.tree_map(_as_double, (info.args, dict(info.kwargs)))
    generator = torch.Generator().manual_seed(seed)

    def noise(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device)
        return leaf

    return [given, pytree.tree_map(noise, given)]


def _as_double(leaf: Any) -> Any:
    return leaf.double().clone() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
