"""Synthesise: calibration images from the network itself, for users who have none."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.synthesise import synthesised
from fxprune.capture import capture_info
from fxprune.passes.base import CALIBRATION, refuse_not_finite, require, state
from fxprune.progress import Progress, silent

SYNTHESISED = "synthesised"


@dataclass(frozen=True, eq=False)
class Synthesise(PassBase):
    """Replaces nothing: makes inputs whose activations have the means and variances that the BatchNorms remember of the
    training images, and hands them on as calibration.

    images: how many.
    """

    images: int = 512
    seed: int = 0
    progress: Progress = field(default=silent, repr=False)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph comes from `capture`."""
        capture_info(graph_module)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Hand on the images; where there are some, leave them."""
        found = state(graph_module)
        if CALIBRATION not in found:
            refuse_not_finite(graph_module)
            making = partial(self.progress, "synthesise")
            inputs = synthesised(graph_module, self.images, seed=self.seed, progress=making)
            found[CALIBRATION], found[SYNTHESISED] = calibration_for(graph_module, [inputs], seed=self.seed), True
        return PassResult(graph_module, False)

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """There are calibration images."""
        require(graph_module, "what follows Synthesise", CALIBRATION)
