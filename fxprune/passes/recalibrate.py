"""Recalibrate: BatchNorm statistics are estimated anew where that helps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.statistics import batch_norm_statistics
from fxprune.passes.base import CALIBRATION, DENSE, require, require_finite, require_fused, require_operators, state
from fxprune.passes.learning import put_if_better

RECALIBRATED = "recalibrated"


@dataclass(frozen=True, eq=False)
class Recalibrate(PassBase):
    """Replaces the running mean and variance of every BatchNorm by those of the calibration images in the shrunk
    network, if that lowers the held-out error of the network's outputs; else nothing.

    After pruning by magnitude it helps much; after least squares, which takes variance away on purpose, seldom.

    Reads dense (or teacher) and calibration from gm.meta["fxprune"].
    """

    def requires(self, graph_module: fx.GraphModule) -> None:
        """What the earlier passes hand on must be there."""
        require(graph_module, "Recalibrate", DENSE, CALIBRATION)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Try the new statistics, and go back where they are worse; a second run changes nothing."""
        found = state(graph_module)
        if RECALIBRATED in found or not found[CALIBRATION].teaches:
            return PassResult(graph_module, False)
        require_operators(graph_module, "Recalibrate")
        require_fused(graph_module, "Recalibrate")
        found[RECALIBRATED] = True
        fresh = batch_norm_statistics(graph_module, found[CALIBRATION])
        return PassResult(graph_module, bool(fresh) and put_if_better(graph_module, "batch norm", fresh))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """Every parameter and statistic is finite."""
        require_finite(graph_module, "Recalibrate")
