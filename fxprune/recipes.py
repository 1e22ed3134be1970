"""Recipes: named pipelines, each a visible tuple of passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.fx.passes.infra.pass_base import PassBase

from fxprune.budget import Budget, require_budget
from fxprune.calibrate.sampling import THOROUGH, THRIFTY, Sampling
from fxprune.checkpoint import Checkpoint
from fxprune.errors import CalibrationError, InputError, registered
from fxprune.latency import Timing
from fxprune.passes.choose import Choose
from fxprune.passes.compare import Compare
from fxprune.passes.fuse import Fuse
from fxprune.passes.lift import Lift
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.recalibrate import Recalibrate
from fxprune.passes.reconstruct import FEW_ROWS, Reconstruct
from fxprune.passes.refine import Refine
from fxprune.passes.shrink import Shrink
from fxprune.passes.squeeze import Squeeze
from fxprune.passes.synthesise import Synthesise
from fxprune.passes.tidy import Tidy
from fxprune.passes.verify import Verify
from fxprune.progress import Progress, silent

Passes = tuple[PassBase, ...]

TRIED = (0.0, 1.0, 2.0)  # capacities, where there is time to compare


@dataclass(frozen=True)
class Settings:
    """What a user may say about a run; see `fxprune.prune`."""

    budget: Budget
    calibration: Any = field(default=None, repr=False)
    verify: bool = True
    seed: int = 0
    importance: str | None = None
    allocation: str | None = None
    multiple_of: int | None = None
    freeze: Iterable[str] = ()
    max_ratio: float | None = None
    heads: bool = False
    timing: Timing = field(default_factory=Timing)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    progress: Progress = field(default=silent, repr=False)

    def __post_init__(self) -> None:
        require_budget(self.budget, "flops=0.58")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise InputError(f"seed={self.seed!r} must be a whole number")

    def choose(
        self,
        importance: str,
        allocation: str,
        calibration: Any,
        sampling: Sampling = THOROUGH,
        capacities: Sequence[float] = Choose.capacities,
        corrected: bool = True,
    ) -> Choose:
        """Which units stay; `importance` and `allocation` where the user names none."""
        return Choose(
            budget=self.budget,
            calibration=calibration,
            importance=self.importance or importance,
            allocation=self.allocation or allocation,
            multiple_of=self.multiple_of,
            freeze=self.freeze,
            max_ratio=self.max_ratio,
            seed=self.seed,
            heads=self.heads,
            timing=self.timing,
            sampling=sampling,
            capacities=capacities,
            corrected=corrected,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )

    def squeeze(self, epochs: float, work: float) -> Squeeze:
        """The first phase."""
        heard = partial(self.progress, "squeeze")
        return Squeeze(epochs, work, seed=self.seed, checkpoint=self.checkpoint, progress=heard)

    def shrink(self) -> Passes:
        """The rewrite, and its proof."""
        return (Shrink(), Verify(self.seed)) if self.verify else (Shrink(),)

    def reconstruct(self, rows_per_input: float = 128) -> Passes:
        """The closed form of the second phase, and where it goes."""
        heard = partial(self.progress, "reconstruct")
        solve = Reconstruct(rows_per_input=rows_per_input, seed=self.seed, checkpoint=self.checkpoint, progress=heard)
        return (solve, Fuse())

    def refine(self, epochs: float, work: float, augment: bool = True) -> Refine:
        """The polish of the second phase."""
        heard = partial(self.progress, "refine")
        return Refine(epochs, work, augment=augment, seed=self.seed, checkpoint=self.checkpoint, progress=heard)


RECIPES: dict[str, Callable[[Settings], Passes]] = {}


def recipe(function: Callable[[Settings], Passes]) -> Callable[[Settings], Passes]:
    """Register a recipe under the name of its function."""
    RECIPES[function.__name__] = function
    return function


def passes_of(name: str, settings: Settings) -> Passes:
    """The passes of a recipe, in order. Raises PlanError where it is not known."""
    return registered("recipe", name, RECIPES)(settings)


@recipe
def fast(use: Settings) -> Passes:
    """Closed form only, from few rows of the images: seconds."""
    return (
        use.choose("second_order", "dynamic", use.calibration, THRIFTY),
        PinSizes(use.heads),
        *use.shrink(),
        *use.reconstruct(rows_per_input=FEW_ROWS),
        Recalibrate(),
        Compare(),
        Tidy(),
        Lift(),
    )


@recipe
def psp(use: Settings) -> Passes:
    """Two-phase reconstruction: minutes."""
    return (
        use.choose("second_order", "dynamic", use.calibration, capacities=TRIED),
        PinSizes(use.heads),
        use.squeeze(epochs=5, work=4e12),
        *use.shrink(),
        *use.reconstruct(),
        Recalibrate(),
        use.refine(epochs=120, work=4e13),
        Compare(),
        Tidy(),
        Lift(),
    )


@recipe
def best(use: Settings) -> Passes:
    """As psp, with several times the work."""
    return (
        use.choose("second_order", "dynamic", use.calibration, capacities=TRIED),
        PinSizes(use.heads),
        use.squeeze(epochs=20, work=1.6e13),
        *use.shrink(),
        *use.reconstruct(),
        Recalibrate(),
        use.refine(epochs=400, work=1.6e14),
        Compare(),
        Tidy(),
        Lift(),
    )


@recipe
def datafree(use: Settings) -> Passes:
    """Closed form and a short polish, on images that are made from the network's own BatchNorm statistics: no data."""
    if use.calibration is not None:
        raise CalibrationError(
            "the recipe 'datafree' makes its own images and looks at no others: leave calibration out, or choose 'fast'"
        )
    return (
        Synthesise(seed=use.seed, progress=use.progress),
        use.choose("second_order", "dynamic", None, capacities=TRIED),
        PinSizes(use.heads),
        *use.shrink(),
        *use.reconstruct(),
        use.refine(epochs=10, work=1e13, augment=False),  # a mixture of images that were made up is unlike any
        Compare(),
        Tidy(),
        Lift(),
    )


@recipe
def magnitude(use: Settings) -> Passes:
    """By the weights alone, one ratio for all groups, nothing corrected: a baseline."""
    looked_at = use.calibration if use.importance or use.budget.max_error else None
    return (
        use.choose("magnitude", "uniform", looked_at, corrected=False),
        PinSizes(use.heads),
        *use.shrink(),
        *(() if looked_at is None else (Compare(),)),
        Tidy(),
        Lift(),
    )
