"""Reconstruct: least squares puts the outputs of every contraction back to what they were."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.contraction import Contraction, contractions
from fxprune.calibrate.evaluate import attribute
from fxprune.calibrate.homes import bias_home
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.judge import comparable, output_error
from fxprune.calibrate.sampling import enough_rows, sample
from fxprune.calibrate.target import Target, target_of
from fxprune.calibrate.walk import Walk
from fxprune.checkpoint import Checkpoint
from fxprune.closed_form.moments import Moments
from fxprune.closed_form.ridge import ridge, squared_error
from fxprune.passes.base import (
    CALIBRATION,
    CORRECTION,
    COUPLING,
    DENSE,
    PLAN,
    note_stage,
    replace_tensor,
    require,
    require_finite,
    require_operators,
    state,
    teacher,
)
from fxprune.progress import Measured, unheard
from fxprune.types import Coupling, Plan

RECONSTRUCTED = "reconstructed"
FEW_ROWS = 40  # for each input, where it is to be quick: comparing plans needs no more


@dataclass(frozen=True, eq=False)
class Reconstruct(PassBase):
    """Before: a shrunk graph with the dense network's weights. After: each contraction, in the order of the graph, has
    the weights with which its pruned-stream inputs come closest to the dense network's outputs, and a constant added to
    its output where the layer has a home for one (Fuse moves it there).

    W = (H + aI)^-1 (G + a W0): least squares drawn to the dense weights W0. The strength of the pull, and whether
    to correct at all, is chosen for each layer on the batches that calibration holds out.

    rho: strengths of the pull to choose from, relative to the mean square of an input.
    rows_per_image, rows_per_input: at most so many output positions of an image serve as rows, drawn with `seed`, and
        fewer where there are `rows_per_input` rows for each input of the contraction.
    memory: bytes of activations to keep in memory; more goes to temporary files.
    progress: called with (layers done, layers, relative squared error of the layer's output).

    The whole is kept only where it lowers the held-out error of the network's outputs; with fewer than four different
    images nothing is solved. Reads dense (or teacher), coupling, plan and calibration from gm.meta["fxprune"].
    """

    rho: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    rows_per_image: int = 32
    rows_per_input: float = 128
    seed: int = 0
    memory: int = 1 << 30
    checkpoint: Checkpoint = field(default_factory=Checkpoint, repr=False)
    progress: Measured = field(default=unheard, repr=False)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier stages hand on must be there."""
        require(graph_module, "Reconstruct", DENSE, COUPLING, PLAN, CALIBRATION)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Solve every contraction in order; a second run changes nothing."""
        found = state(graph_module)
        if RECONSTRUCTED in found or not found[CALIBRATION].teaches:
            return PassResult(graph_module, False)
        require_operators(graph_module, "Reconstruct")
        found[RECONSTRUCTED] = True
        original, calibration = teacher(graph_module), found[CALIBRATION]
        items = contractions(graph_module)
        uncorrected = {item.weight: attribute(graph_module, item.weight) for item in items.values()}
        before = output_error(original, graph_module, calibration)
        offsets = self._resumed(graph_module)
        if offsets is None:
            offsets = self._solve_all(graph_module, original)
            solved = {name: attribute(graph_module, name) for name in uncorrected}
            self.checkpoint.save("reconstruct", {"weights": solved, "offsets": dict(offsets)})
        after = output_error(original, graph_module, calibration, offsets)
        judged = bool(comparable(original, graph_module))
        better = after < before or not judged
        if better:
            for name, offset in offsets.items():
                _insert(graph_module, items[name], offset)
            graph_module.recompile()
        else:
            for name, weight in uncorrected.items():
                replace_tensor(graph_module, name, weight)
        if judged:
            note_stage(graph_module, "least squares", before, min(before, after))
        return PassResult(graph_module, better)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter is finite."""
        require_finite(graph_module, "Reconstruct")

    def _resumed(self, gm: fx.GraphModule) -> Mapping[str, Tensor] | None:
        """What an interrupted run has solved: its weights in their places, and the constants."""
        known = self.checkpoint.load("reconstruct", "weights", "offsets")
        if known is None:
            return None
        for name, weight in known["weights"].items():
            replace_tensor(gm, name, weight)
        offsets: dict[str, Tensor] = known["offsets"]
        return offsets

    def _solve_all(self, gm: fx.GraphModule, original: fx.GraphModule) -> Mapping[str, Tensor]:
        """Give every contraction its weight, in order; returns the constants to add behind each, by node."""
        found = state(gm)
        items = list(contractions(gm).values())
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad(), Walk(original, gm, found[CALIBRATION], self.memory) as walk:
            for done, item in enumerate(items):
                unsolved = {later.name for later in items[done + 1 :]}
                target = target_of(gm, item, unsolved, kept_outputs(item, found[COUPLING], found[PLAN]))
                error = self._solve(gm, walk, target, found[CALIBRATION], generator)
                self.progress(done + 1, len(items), error)
            return walk.pruned.offsets

    def _solve(
        self, gm: fx.GraphModule, walk: Walk, target: Target, calibration: Calibration, generator: torch.Generator
    ) -> float:
        """Correct one contraction; returns the error that is left of its output."""
        item = target.item
        weight = attribute(gm, item.weight)
        prior = item.matrix(weight)
        systems, inputs, outputs = prior.shape
        wanted = enough_rows(inputs, calibration.count, self.rows_per_image, self.rows_per_input)
        fit, judge = (Moments(systems, inputs, outputs, weight.device) for _ in range(2))
        for index, (dense, pruned) in enumerate(walk.stage(item.name, target.dense, target.pruned)):
            value, count = dense[item.name], math.ceil(wanted * calibration.sizes[index])
            rows = sample(item.positions(value), count, generator).to(weight.device)
            moments = judge if calibration.is_held_out(index) else fit
            moments.add(item.rows(pruned[item.source], value, rows), target.rows(dense, pruned, rows))
        node = walk.pruned.nodes[item.name]
        error, solution = _best(fit, judge, prior, self.rho, bias_home(node) is not None)
        if solution is not None:
            replace_tensor(gm, item.weight, item.tensor(solution[0], weight))
            if bias_home(node) is not None:
                walk.pruned.offsets[item.name] = item.along_channels(solution[1].to(weight), value.ndim)
        return error


def _best(
    fit: Moments, judge: Moments, prior: Tensor, strengths: tuple[float, ...], intercept: bool
) -> tuple[float, tuple[Tensor, Tensor] | None]:
    """The solution that the held-out rows like best, None for the prior, and its relative error there."""
    unchanged = prior.new_zeros(prior.shape[0], prior.shape[2])
    rows = judge if judge.count else fit
    scale = rows.second()[2].mean().clamp_min(1e-30)

    def error(weights: Tensor, bias: Tensor) -> float:
        return float(squared_error(rows, weights, bias).mean() / scale)

    before = error(prior, unchanged)
    solutions = [ridge(fit, prior, rho, intercept) for rho in strengths]
    least, best = min((error(*solution), number) for number, solution in enumerate(solutions))
    return (least, solutions[best]) if least < before else (before, None)


def kept_outputs(item: Contraction, coupling: Coupling, plan: Plan) -> Tensor | None:
    """The positions of a contraction's output channels that stay under `plan`; None where all do."""
    mask = coupling.mask(plan)
    fields = [f for f in coupling.param_fields[item.weight] if f.axis == 0]
    staying = [mask[f.ids].reshape(len(f.ids), -1).any(1) for f in fields if f.ids.shape[0] > 1]
    return torch.nonzero(reduce(operator.and_, staying))[:, 0] if staying else None


def _insert(gm: fx.GraphModule, item: Contraction, offset: Tensor) -> None:
    """Add `offset` to the output of a contraction, as a node of its own."""
    node = next(node for node in gm.graph.nodes if node.name == item.name)
    name = f"{node.name}_correction"
    gm.register_buffer(name, offset)
    with gm.graph.inserting_after(node):
        constant = gm.graph.get_attr(name)
    constant.meta["val"] = node.meta["val"].fake_mode.from_tensor(offset, static_shapes=True)
    with gm.graph.inserting_after(constant):
        total = gm.graph.call_function(torch.ops.aten.add.Tensor, (node, constant))
    total.meta = {**node.meta, CORRECTION: True}
    node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
