"""What removing units of one group really does to the network's outputs, on calibration images."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxprune.calibrate.contraction import Contraction, contractions
from fxprune.calibrate.evaluate import Evaluator, Values, attribute, judged_of, to_device
from fxprune.calibrate.images import Calibration
from fxprune.calibrate.judge import Spread, squared
from fxprune.calibrate.observe import Observed, column_units
from fxprune.calibrate.room import images_at_once
from fxprune.calibrate.sampling import THOROUGH, Sampling
from fxprune.closed_form.removal import Removal
from fxprune.closed_form.ridge import compensated
from fxprune.progress import Counted
from fxprune.types import ChannelGroup, Coupling

RHO = 1e-2
WORST = 1e30  # the error of a cut after which the outputs are no numbers


def measured(
    gm: fx.GraphModule,
    coupling: Coupling,
    removals: Mapping[str, Removal],
    observed: Mapping[str, Observed],
    calibration: Calibration,
    *,
    sampling: Sampling = THOROUGH,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    memory: int = 1 << 30,
    progress: Counted | None = None,
) -> dict[str, Removal]:
    """The removals with their errors scaled to what the network's outputs say.

    The second-order model takes the errors of different positions for independent and the network behind for linear.
    So each group is cut by each of `shares`, its readers make up for it (what is no contraction, such as an LSTM, reads
    zeros, and what only products read, such as queries, is zero), and the rest of the network is run on as many of the
    held-out images as `sampling` says: on those that the readers were fitted to, what few rows say of many inputs looks
    far better than it is. Between the cuts the ratio of measured to foretold error is interpolated.

    progress: called with (images done, images).
    """
    trials = [
        trial
        for group in coupling.groups
        for trial in _trials(gm, coupling, group, removals[group.name], observed, shares)
    ]
    if not trials:
        return dict(removals)
    affordable = sampling.images_of_trials(_runs(gm, trials), calibration.count)
    images = min(calibration.count_of(calibration.judging), affordable)
    evaluator = Evaluator(gm)
    spreads = {name: Spread() for name in judged_of(gm)}
    errors, done = torch.zeros(len(trials), len(spreads), dtype=torch.float64), 0
    with torch.no_grad():
        for batch in _some(calibration, images, images_at_once(gm, memory)):
            base = _Base(evaluator, batch)
            for name, each in spreads.items():
                each.add(base.values[name], len(batch[0]))
            errors = errors + torch.stack([base.errors(trial) for trial in trials])
            done += len(batch[0])
            if progress is not None:
                progress(done, images)
    variances = torch.tensor([each.total() for each in spreads.values()], dtype=torch.float64)
    found: dict[str, dict[int, float]] = {name: {} for name in removals}
    relative = torch.nan_to_num(errors / variances.clamp_min(1e-30), nan=WORST, posinf=WORST)  # what overflows is dear
    telling = variances > 0 if bool(variances.any()) else variances == 0  # an output that never varies says nothing
    for trial, error in zip(trials, relative[:, telling].mean(1).tolist(), strict=True):
        found[trial.group][trial.rounds] = error
    return {name: _scaled(removal, found[name]) for name, removal in removals.items()}


@dataclass(frozen=True)
class _Trial:
    """A group cut by some rounds: the values that stand in for the weights of its readers, constants added to their
    outputs, and the nodes whose values change."""

    group: str
    rounds: int
    weights: Values
    offsets: dict[str, Tensor]
    changed: frozenset[str]


def _runs(gm: fx.GraphModule, trials: Sequence[_Trial]) -> float:
    """How many runs of the whole network the trials amount to, counted by the contractions that they compute."""
    names = contractions(gm).keys()
    return sum(len(names & trial.changed) for trial in trials) / max(1, len(names))


def _trials(
    gm: fx.GraphModule,
    coupling: Coupling,
    group: ChannelGroup,
    removal: Removal,
    observed: Mapping[str, Observed],
    shares: Sequence[float],
) -> Iterator[_Trial]:
    readers = {item.name: item for item in contractions(gm).values() if item.weight in observed}
    nodes = {node.name: node for node in gm.graph.nodes}
    for rounds in sorted({round(share * (len(removal.errors) - 1)) for share in shares} - {0}):
        gone = torch.tensor(removal.order[: rounds * removal.step])
        weights, offsets = {}, {}
        for item in readers.values():
            units = column_units(item, coupling, group, attribute(gm, item.weight))
            lost = torch.isin(units, gone)
            if bool(lost.any()):
                weight_node = nodes[item.name].all_input_nodes[1].name
                weights[weight_node], offsets[item.name] = _compensated(gm, item, observed[item.weight], lost)
        weights |= _zeroed(gm, group, gone, {item.weight for item in readers.values()})
        if weights:
            yield _Trial(group.name, rounds, weights, offsets, _downstream(nodes, weights))


def _zeroed(gm: fx.GraphModule, group: ChannelGroup, gone: Tensor, corrected: set[str]) -> Values:
    """The tensors, by the nodes that read them, in which units must be set to zero: where no contraction makes up."""
    lost, made = (torch.zeros(group.width, dtype=torch.bool) for _ in range(2))
    lost[gone] = made[gone] = True
    for _, ids, role in group.sources:
        if role == "consumes":  # a unit that is read somewhere need not be zero where it is made
            made[(ids - group.offset)[(ids >= group.offset) & (ids < group.offset + group.width)]] = False
    values: dict[str, Tensor] = {}
    for param, ids, role in group.sources:
        mask = made if role == "produces" else lost
        tensor = values.get(param, attribute(gm, param))
        if (role == "produces" or param not in corrected) and bool(mask.any()) and tensor.is_floating_point():
            inside = (ids >= group.offset) & (ids < group.offset + group.width)
            removed = inside & mask[(ids - group.offset).clamp(0, group.width - 1)]
            values[param] = tensor.masked_fill(removed.to(tensor.device), 0)
    return {node.name: values[str(node.target)] for node in gm.graph.nodes if node.target in values}


def _compensated(gm: fx.GraphModule, item: Contraction, seen: Observed, lost: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of a reader without its inputs `lost`, and the constant that makes up for their mean."""
    lost, like = lost.to(seen.covariance.device), attribute(gm, item.weight)
    single = torch.promote_types(like.dtype, torch.float32)  # enough for a trial
    parts = [
        compensated(covariance, weights, ~gone, RHO) if bool(gone.any()) else weights
        for covariance, weights, gone in zip(seen.covariance.to(single), seen.weights.to(single), lost, strict=True)
    ]
    matrix = torch.stack(parts).double()
    offset = (seen.mean.unsqueeze(-2) @ (seen.weights - matrix)).squeeze(-2)
    node = next(node for node in gm.graph.nodes if node.name == item.name)
    return item.tensor(matrix, like), item.along_channels(offset.to(like), node.meta["val"].ndim)


def _downstream(nodes: Mapping[str, fx.Node], names: Values) -> frozenset[str]:
    changed: set[str] = set()
    stack = [nodes[name] for name in names]
    while stack:
        node = stack.pop()
        if node.name not in changed:
            changed.add(node.name)
            stack += list(node.users)
    return frozenset(changed)


class _Base:
    """One batch with the values of all nodes of the dense network."""

    def __init__(self, evaluator: Evaluator, batch: tuple[Tensor, ...]) -> None:
        gm = evaluator.gm
        self._evaluator, self._outputs = evaluator, judged_of(gm)
        names = [node.name for node in gm.graph.nodes if node.op in ("call_function", "placeholder", "get_attr")]
        evaluator.offsets = {}
        self.values = evaluator([*names, *self._outputs], to_device(gm, batch))

    def errors(self, trial: _Trial) -> Tensor:
        """The squared error of each output under a trial."""
        given = {name: value for name, value in self.values.items() if name not in trial.changed}
        self._evaluator.offsets = trial.offsets
        outputs = self._evaluator(self._outputs, {**given, **trial.weights})
        each = [squared(outputs[name], self.values[name]) for name in self._outputs]
        return torch.tensor(each, dtype=torch.float64)


def _some(calibration: Calibration, images: int, chunk: int) -> Iterator[tuple[Tensor, ...]]:
    """The first images to judge by, in pieces of at most `chunk`."""
    for batch in calibration.batches_of(calibration.first(calibration.judging, images)):
        some = batch if calibration.fixed else tuple(column[:images] for column in batch)
        yield from calibration.cut(some, chunk)
        images -= len(batch[0])


def _scaled(removal: Removal, found: Mapping[int, float]) -> Removal:
    """The errors of a removal, drawn through the measured ones; they never fall."""
    foretold = removal.errors
    cuts = [(rounds, error / foretold[rounds]) for rounds, error in sorted(found.items()) if foretold[rounds] > 0]
    if not cuts:
        return removal
    errors = [0.0]
    for rounds in range(1, len(removal.errors)):
        errors.append(max(errors[-1], removal.errors[rounds] * _between(cuts, rounds)))
    return replace(removal, errors=tuple(errors))


def _between(cuts: list[tuple[int, float]], at: int) -> float:
    """The ratio at `at`, interpolated in its logarithm; flat beyond the ends."""
    place = bisect_left([rounds for rounds, _ in cuts], at)
    if place in (0, len(cuts)):
        return cuts[min(place, len(cuts) - 1)][1]
    (left, low), (right, high) = cuts[place - 1], cuts[place]
    share = (at - left) / (right - left)
    return math.exp((1 - share) * math.log(max(low, 1e-30)) + share * math.log(max(high, 1e-30)))
