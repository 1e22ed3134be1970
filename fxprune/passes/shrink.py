"""Shrink: the tensors lose what the plan removes, get what it repeats, and every size in the graph follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.capture import capture_info
from fxprune.coupling.check import check_plan, require_plan
from fxprune.coupling.kept import Kept
from fxprune.errors import PlanError, RewriteError, describe, shape_of
from fxprune.passes.base import (
    ANALYSED,
    COUPLING,
    DENSE,
    PLAN,
    analysed,
    clone,
    refresh_metadata,
    replace_tensors,
    require_operators,
    state,
)
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.sizes import RESIZE, moved_positions, same_shape, set_argument
from fxprune.types import Plan


@dataclass(frozen=True, eq=False)
class Shrink(PassBase):
    """Replaces every parameter and buffer by its kept part, and literal sizes by what the channel fields predict.

    plan: which units stay; None takes the one that Choose handed on. The graph before removal is
        handed on as the dense graph. Where the plan widens, a unit that it names n times is there n times: the copies
        hold the same values and stand next to each other.
    Postcondition: every tensor in the graph has the shape that the fields predict. Raises PlanError where an op of the
        graph cannot be made as wide as the plan says.
    """

    plan: Plan | None = None

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph comes from `capture`, and there is a plan."""
        capture_info(graph_module)
        if self.plan is not None:
            require_plan(self.plan)
        elif PLAN not in state(graph_module):
            raise RewriteError("Shrink has no plan: give it one, or run Choose first")

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite in place, unless the graph has been shrunk already."""
        if DENSE in state(graph_module):
            return PassResult(graph_module, False)
        require_operators(graph_module, "Shrink")
        plan = self.plan or state(graph_module)[PLAN]
        coupling = analysed(graph_module, plan.heads)
        state(graph_module).pop(ANALYSED, None)  # of no use to what follows
        plan = check_plan(coupling, plan)
        kept = Kept.under(coupling, plan)
        state(graph_module).update({DENSE: clone(graph_module), PLAN: plan, COUPLING: coupling})
        with _plan_errors(plan):
            _resize(graph_module, kept)
            _cut(graph_module, kept)
            refresh_metadata(graph_module)
        graph_module.recompile()
        return PassResult(graph_module, True)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every shape is as predicted."""
        found = state(graph_module)
        kept = Kept.under(found[COUPLING], found[PLAN])
        dense = {node.name: node for node in found[DENSE].graph.nodes}
        for node in graph_module.graph.nodes:
            if shape_of(node) is not None and node.name in dense:
                predicted = kept.shape(dense[node.name])
                if not same_shape(node.meta["val"].shape, predicted):
                    with _plan_errors(found[PLAN]):
                        raise RewriteError(f"the channel fields predict {predicted} for {describe(node)}")


def _resize(gm: fx.GraphModule, kept: Kept) -> None:
    """Gives every call the arguments that follow from the sizes of its tensors; all are read before any changes."""
    changes = {node: RESIZE[node.target](node, kept) for node in gm.graph.nodes if node.target in RESIZE}
    for node, arguments in changes.items():
        for name, value in arguments.items():
            set_argument(node, name, value)


def _cut(gm: fx.GraphModule, kept: Kept) -> None:
    """Gives every parameter and buffer its kept part; an index along a shrinking axis points at where things went."""
    moved = moved_positions(gm, kept)

    def cut(name: str, tensor: Tensor) -> Tensor:
        left = kept.cut(tensor, kept.coupling.param_fields.get(name, ()))
        return moved[name].to(left)[left.long()] if name in moved else left

    replace_tensors(gm, cut)


@contextmanager
def _plan_errors(plan: Plan) -> Iterator[None]:
    """Removing units is always possible, and a failure our own; that a network cannot be widened is the plan's."""
    try:
        yield
    except RewriteError as error:
        if not plan.repeats:
            raise
        raise PlanError(f"this network cannot be made as wide as the plan says: {error}") from error


def merely_cut(gm: fx.GraphModule, kept: Kept) -> fx.GraphModule:
    """A copy of a dense graph with pinned sizes, to be run: tensors and sizes are cut, metadata stay as they were."""
    small = clone(gm)
    _resize(small, kept)
    _cut(small, kept)
    small.recompile()
    return small


def shrink(gm: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """A copy of a captured graph without what `plan` removes, and with what it repeats as often as it says.

    Raises PlanError on a plan that does not fit the network.
    """
    if DENSE in state(gm):
        raise PlanError("this graph has been shrunk already: shrink the captured original, or capture the result anew")
    small = clone(gm)
    for step in (PinSizes(plan.heads), Shrink(plan)):
        step(small)
    return small
