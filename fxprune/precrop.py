"""Pruning at initialisation: PreCrop sets the widths of a network before it is trained, PreConfig lets them grow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassBase

from fxprune.allocate import patterns_of
from fxprune.api import Result, run_passes
from fxprune.budget import Budget, require_budget
from fxprune.capture import capture, capture_info
from fxprune.passes.base import COUPLING, PLAN, clone, state
from fxprune.passes.configure import Configure
from fxprune.passes.initialise import Initialise
from fxprune.passes.lift import Lift
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import Shrink
from fxprune.passes.tidy import Tidy
from fxprune.passes.verify import Verify
from fxprune.progress import heard_by
from fxprune.summary import summary


def precrop(
    model: nn.Module | fx.GraphModule | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    budget: Budget,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    method: str = "precrop",
    data: tuple[Any, Any] | None = None,
    grow: bool = False,
    multiple_of: int = 1,
    freeze: Iterable[str] = (),
    max_ratio: float | None = None,
    heads: bool = False,
    reinitialise: bool = False,
    verify: bool = True,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Result:
    """A network whose widths are set before it is trained: without data, without weights, by a convex program.

    The widths maximise the sum of the logs of the layers' densities within the budget (SynExp, arXiv 2203.02549). Which
    channels of a group stay does not matter before training: they are drawn by `seed`.

    model: as its constructor makes it; it is not modified, and the result is in the mode that it is in.
    example_inputs: a tuple of tensors; a lone tensor is taken as one.
    budget: flops=, params= and memory=, each a share or an absolute number; met, never overshot.
    method: a name of `fxprune.widths.METHODS`: "precrop", or a baseline: "uniform", "erk", "synflow", "snip", "grasp",
        "random".
    data: a batch of inputs and class labels, for "snip" and "grasp".
    grow: PreConfig: groups may also become wider than they are, as the budget allows.
    multiple_of: widths that change become multiples of this.
    freeze: names or globs of parameters, modules or groups that must stay as they are.
    max_ratio: the largest share of any one group that may go; without it, one unit of each block stays.
    heads: whether attention loses whole heads, as in `analyze`.
    reinitialise: draw all weights anew by each module's own `reset_parameters`, for the new widths. Without it the
        network keeps what is left of the weights it came with; layers that grow are drawn anew in any case.
    verify: compare, in float64, the cropped network with the oracle; a network that grows has none.
    progress: called as progress(stage, done, total).

    Raises an FxpruneError that says what to do; see fxprune.errors.
    """
    require_budget(budget, "params=0.5")
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    captured = capture(model, example_inputs, example_kwargs, dynamic_shapes)
    seconds["capture"] = time.perf_counter() - started
    configure = Configure(
        budget=budget,
        method=method,
        grow=grow,
        model=model if isinstance(model, nn.Module) else None,
        data=data,
        multiple_of=multiple_of,
        freeze=patterns_of(freeze),
        max_ratio=max_ratio,
        heads=heads,
        seed=seed,
    )
    gm = clone(captured)
    steps = passes_of(configure, verify=verify, reinitialise=reinitialise)
    seconds |= run_passes(gm, steps, verify=verify, progress=heard_by(progress))
    if isinstance(model, nn.Module):
        gm.train(model.training)
    info = capture_info(captured)
    report = summary(model, gm, budget, "preconfig" if grow else method, seed, seconds)
    return Result(gm, report, state(gm)[PLAN], state(gm)[COUPLING], (info.args, info.kwargs, info.dynamic_batch))


def passes_of(configure: Configure, *, verify: bool = True, reinitialise: bool = False) -> tuple[PassBase, ...]:
    """The passes of PreCrop, in order, for `precrop` or any PassManager."""
    proof = (Verify(configure.seed),) if verify else ()
    drawn = (Initialise(everything=reinitialise, seed=configure.seed),) if reinitialise or configure.grow else ()
    return (configure, PinSizes(configure.heads), Shrink(), *proof, Tidy(), Lift(), *drawn)
