"""Compare: how far each layer is from the dense network, before and after all corrections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.judge import comparable, layer_errors, output_error
from fxprune.coupling.kept import Kept
from fxprune.passes.base import (
    CALIBRATION,
    COUPLING,
    DENSE,
    PLAN,
    STAGES,
    note_stage,
    require,
    require_fused,
    require_operators,
    state,
    teacher,
)
from fxprune.passes.pin_sizes import pinnable
from fxprune.passes.shrink import merely_cut, shrink

ERRORS = "errors"


@dataclass(frozen=True, eq=False)
class Compare(PassBase):
    """Replaces nothing: hands on, for each contraction, the squared error of its output relative to its variance on the
    held-out images, when channels are only removed, and in the network as it is now; where nothing has measured the
    error of the outputs, that as well.

    Reads dense (or teacher), coupling, plan and calibration from gm.meta["fxprune"]; writes "errors" there: (layer,
    error before, error after).
    """

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph has been shrunk, and there are images."""
        require(graph_module, "Compare", DENSE, COUPLING, PLAN, CALIBRATION)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Run the dense, the merely shrunk and the corrected network; the graph stays as it is."""
        found = state(graph_module)
        if ERRORS not in found:
            require_operators(graph_module, "Compare")
            require_fused(graph_module, "Compare")
            original = teacher(graph_module)
            kept = Kept.under(found[COUPLING], found[PLAN])
            pinned = not pinnable(original, found[COUPLING])
            cut = merely_cut(original, kept) if pinned else shrink(original, found[PLAN])
            before, after = layer_errors(original, (cut, graph_module), kept, found[CALIBRATION])
            if STAGES not in found and comparable(original, graph_module):
                error = output_error(original, graph_module, found[CALIBRATION])
                note_stage(graph_module, "shrink", error, error)
            found[ERRORS] = tuple((name, before[name], error) for name, error in after.items())
        return PassResult(graph_module, False)
