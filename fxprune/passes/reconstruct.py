"""Reconstruct: least squares puts the outputs of every contraction back to what they were."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.contraction import Contraction, contractions
from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.homes import bias_home
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.observe import sample
from fxprune.calibrate.target import Target, target_of
from fxprune.calibrate.walk import Walk
from fxprune.capture import META
from fxprune.closed_form.moments import Moments
from fxprune.closed_form.ridge import ridge, squared_error
from fxprune.errors import RewriteError
from fxprune.passes.base import state
from fxprune.types import Coupling, Plan

CORRECTION = "fxprune_correction"  # marks, in node.meta, the additions that Fuse takes away


@dataclass(frozen=True, eq=False)
class Reconstruct(PassBase):
    """Before: a shrunk graph with the dense network's weights. After: each contraction, in the order of the graph, has
    the weights with which its pruned-stream inputs come closest to the dense network's outputs, and a constant added to
    its output where the layer has a home for one (Fuse moves it there).

    W = (H + aI)^-1 (G + a W0): least squares drawn to the dense weights W0. The strength of the pull, and whether
    to correct at all, is chosen for each layer on the batches that calibration holds out.

    rho: strengths of the pull to choose from, relative to the mean square of an input.
    rows_per_image: output positions of an image that serve as rows, drawn with `seed`.
    memory: bytes of activations to keep in memory; more goes to temporary files.
    progress: called with (layers done, layers).

    Reads dense, coupling, plan and calibration from gm.meta["fxprune"]; writes "errors" there: (layer, relative squared
    error before, after) on the held-out batches.
    """

    rho: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    rows_per_image: int = 32
    seed: int = 0
    memory: int = 2 << 30
    progress: Callable[[int, int], None] | None = field(default=None, repr=False)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier stages hand on must be there."""
        missing = [key for key in ("dense", "coupling", "plan", "calibration") if key not in state(graph_module)]
        if missing:
            raise RewriteError(f"Reconstruct needs {', '.join(missing)} in gm.meta[{META!r}]: run it after Shrink")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Solve every contraction in order; a second run changes nothing."""
        handed = state(graph_module)
        if "errors" in handed:
            return PassResult(graph_module, False)
        items = list(contractions(graph_module).values())
        generator = torch.Generator().manual_seed(self.seed)
        errors = []
        with torch.no_grad(), Walk(handed["dense"], graph_module, handed["calibration"], self.memory) as walk:
            for done, item in enumerate(items):
                unsolved = {later.name for later in items[done + 1 :]}
                kept = kept_outputs(item, handed["coupling"], handed["plan"])
                target = target_of(graph_module, item, unsolved, kept)
                errors.append(self._solve(graph_module, walk, target, handed["calibration"], generator))
                if self.progress is not None:
                    self.progress(done + 1, len(items))
            offsets = walk.pruned.offsets
        for item in items:
            if item.name in offsets:
                _insert(graph_module, item, offsets[item.name])
        graph_module.recompile()
        handed["errors"] = tuple(errors)
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter is finite."""
        for name, tensor in (*graph_module.named_parameters(), *graph_module.named_buffers()):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise RewriteError(f"Reconstruct left NaN or infinity in `{name}`")

    def _solve(
        self, gm: fx.GraphModule, walk: Walk, target: Target, calibration: Calibration, generator: torch.Generator
    ) -> tuple[str, float, float]:
        """Correct one contraction; returns its weight's name and its errors before and after."""
        item = target.item
        weight = attribute(gm, item.weight)
        prior = item.matrix(weight)
        bias = prior.new_zeros(prior.shape[0], prior.shape[2])
        if item.bias is not None:
            bias = attribute(gm, item.bias).reshape(bias.shape)
        systems, inputs, outputs = prior.shape
        fit, judge = (Moments(systems, inputs, outputs, weight.device) for _ in range(2))
        for index, (dense, pruned) in enumerate(walk.stage(item.name, target.dense, target.pruned)):
            value = dense[item.name]
            rows = sample(item.positions(value), self.rows_per_image * len(value), generator).to(weight.device)
            moments = judge if calibration.is_held_out(index) else fit
            moments.add(item.rows(pruned[item.source], value, rows), target.rows(dense, pruned, rows) - bias[:, None])
        node = walk.pruned.nodes[item.name]
        before, after, solution = _best(fit, judge, prior, self.rho, bias_home(node) is not None)
        if solution is not None:
            replace_tensor(gm, item.weight, item.tensor(solution[0], weight))
            if bias_home(node) is not None:
                walk.pruned.offsets[item.name] = item.along_channels(solution[1].to(weight), value.ndim)
        return item.weight, before, after


def _best(
    fit: Moments, judge: Moments, prior: Tensor, strengths: tuple[float, ...], intercept: bool
) -> tuple[float, float, tuple[Tensor, Tensor] | None]:
    """Relative errors before and after, and the solution that the held-out rows like best; None for the prior."""
    unchanged = prior.new_zeros(prior.shape[0], prior.shape[2])
    rows = judge if judge.count else fit
    scale = rows.second()[2].mean().clamp_min(1e-30)

    def error(weights: Tensor, bias: Tensor) -> float:
        return float(squared_error(rows, weights, bias).mean() / scale)

    before = error(prior, unchanged)
    trials = {rho: error(*ridge(fit, prior, rho, intercept)) for rho in strengths}
    best = min(trials, key=trials.__getitem__)
    if not trials[best] < before:
        return before, before, None
    return before, trials[best], ridge(fit.merged(judge), prior, best, intercept)


def kept_outputs(item: Contraction, coupling: Coupling, plan: Plan) -> Tensor | None:
    """The positions of a contraction's output channels that stay under `plan`; None where all do."""
    mask = coupling.mask(plan)
    fields = [f for f in coupling.param_fields[item.weight] if f.axis == 0]
    staying = [mask[f.ids].reshape(len(f.ids), -1).any(1) for f in fields if f.ids.shape[0] > 1]
    return torch.nonzero(reduce(operator.and_, staying))[:, 0] if staying else None


def replace_tensor(gm: fx.GraphModule, name: str, value: Tensor) -> None:
    """Put a new tensor of the same kind under `name`: the old one may belong to the user's model."""
    path, _, leaf = name.rpartition(".")
    owner = gm.get_submodule(path)
    old = getattr(owner, leaf)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    setattr(owner, leaf, new)


def _insert(gm: fx.GraphModule, item: Contraction, offset: Tensor) -> None:
    """Add `offset` to the output of a contraction, as a node of its own."""
    node = next(node for node in gm.graph.nodes if node.name == item.name)
    name = f"{node.name}_correction"
    gm.register_buffer(name, offset)
    with gm.graph.inserting_after(node):
        constant = gm.graph.get_attr(name)
    with gm.graph.inserting_after(constant):
        total = gm.graph.call_function(torch.ops.aten.add.Tensor, (node, constant))
    total.meta = {**node.meta, CORRECTION: True}
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
