"""Calibration data: whatever the user gives becomes checked batches of flat graph inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.calibrate.gather import gathered
from fxprune.calibrate.room import images_at_once
from fxprune.capture import capture_info
from fxprune.checkpoint import fingerprint
from fxprune.errors import CalibrationError

BATCH = 64  # images
FEWEST = 4  # different images
Batch = tuple[Tensor, ...]  # one tensor for each placeholder of the graph


@dataclass(frozen=True)
class Calibration:
    """Batches of graph inputs, as many images in each as fit a pass through the network.

    batches: one tensor for each placeholder of the graph, made when asked for.
    held_out: how many of the batches, taken from the end, nothing is fitted to: they judge cuts, corrections and rates.
    distinct: how many images differ from one another, None where nobody counted.
    fixed: whether the network takes batches of this size alone, so that none may be cut.
    """

    batches: Sequence[Batch]
    held_out: int = 0
    distinct: int | None = None
    fixed: bool = False

    @property
    def teaches(self) -> bool:
        """Whether there are images enough to correct anything by: what fits one may be wrong for all others."""
        return self.distinct is None or self.distinct >= FEWEST

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of images in each batch; where batches are made when asked for, none is."""
        if isinstance(self.batches, _Batches):
            return [len(part) for part in self.batches.parts]
        return [len(batch[0]) for batch in self.batches]

    @property
    def fitting(self) -> range:
        """Where the batches to learn from are: all that are not held out."""
        return range(len(self.batches) - self.held_out)

    @property
    def judging(self) -> range:
        """Where the batches to judge by are: the held-out ones, or all where none is held out."""
        return range(len(self.fitting) if self.held_out else 0, len(self.batches))

    def count_of(self, part: range) -> int:
        """Number of images in some of the batches."""
        return sum(self.sizes[index] for index in part)

    def first(self, part: range, images: float) -> range:
        """As many of some batches, from the first on, as hold so many images."""
        seen = accumulate((self.sizes[index] for index in part), initial=0)
        return part[: sum(before < images for before in islice(seen, len(part)))]

    def batches_of(self, part: range) -> Iterator[Batch]:
        """Some of the batches, one at a time."""
        return (self.batches[index] for index in part)

    def cut(self, batch: Batch, size: int) -> Iterator[Batch]:
        """A batch in pieces of at most `size` images; as it is where the network takes no other size."""
        yield from [batch] if self.fixed else zip(*(column.split(size) for column in batch), strict=True)

    def finer(self, size: int) -> Calibration:
        """The same images, held out as before, in batches of at most `size`; as it is where none may be cut."""
        if self.fixed:
            return self
        judging = self.sizes[len(self.fitting) :]
        pieces: Sequence[Batch]
        if isinstance(self.batches, _Batches):
            pieces = self.batches.finer(size)
        else:
            pieces = [piece for batch in self.batches for piece in self.cut(batch, size)]
        return replace(self, batches=pieces, held_out=sum(math.ceil(count / size) for count in judging))

    def batch_bytes(self) -> int:
        """Bytes of the first batch, which is as large as any."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.batches[0])

    def is_held_out(self, index: int) -> bool:
        """Whether the batch at `index` is kept apart for judging."""
        return index >= len(self.fitting)


def calibration_for(
    gm: fx.GraphModule, data: Any, *, batch_size: int | None = None, held_out: float = 0.125, seed: int = 0
) -> Calibration:
    """Check unlabelled calibration data against the inputs of a captured graph and cut it into batches.

    data: a tensor [images, ...], a DataLoader, or any iterable of tensors, tuples (first item: the input) or dicts
        (by the names of the inputs, or like the one that the forward takes). It is read once. A Calibration is taken
        as it is.
    batch_size: images in a batch; 64 where nothing is said, or as many as fit a pass through the network.
    held_out: the share of the images kept apart for judging, drawn with `seed`; in whole batches where the graph takes
        no others.

    Raises CalibrationError when the data is empty, holds NaN or infinity, or does not fit the graph, and where an input
    of the graph has no samples.
    """
    if isinstance(data, Calibration):
        return data
    inputs = sampled_inputs(gm)
    columns = gathered(_checked(inputs, data, _whole(gm)))
    if not columns or len(columns[0]) == 0:
        raise CalibrationError("calibration holds no images: give at least one, better a few hundred")
    baked = _static_batch(inputs)
    fixed = baked is not None
    size = baked or batch_size or min(BATCH, images_at_once(gm))
    unit = size if fixed else 1  # whole batches stay as they are: their first axis may be that of time
    count = len(columns[0]) // unit * unit
    if count == 0:
        raise CalibrationError(f"the model bakes a batch of {size} in, but calibration holds {len(columns[0])} images")
    order, same = _drawn(count, unit, seed), _same(columns)
    if fixed:  # one batch at least where there are several
        apart = size * max(round(held_out * count / size), int(held_out > 0 and size < count))
    else:
        order, apart = _copies_together(order, same, held_out)
    fitting, judging = (
        part.split(size) if len(part) else () for part in (order[: count - apart], order[count - apart :])
    )
    batches = _Batches(columns, (*fitting, *judging))
    return Calibration(batches, len(judging), len(same[order].unique()), fixed)


def sampled_inputs(gm: fx.GraphModule) -> list[fx.Node]:
    """The placeholders. Raises CalibrationError where one is no tensor with a dimension of samples."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node in inputs:
        value = node.meta["val"]
        if not isinstance(value, Tensor) or value.ndim == 0:
            found = "a single number" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
            raise CalibrationError(
                f"input `{node.name}` is {found}, not a tensor of samples: keep it in the module or leave it to its "
                "default, for calibration cannot give it; or choose the recipe 'magnitude', which needs no images"
            )
    return inputs


@dataclass(frozen=True)
class _Batches(Sequence[Batch]):
    """Rows of the columns, put together when a batch is asked for."""

    columns: Sequence[Tensor]
    parts: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: Any) -> Any:
        return tuple(column[self.parts[index]] for column in self.columns)

    def finer(self, size: int) -> _Batches:
        """The same rows in batches of at most `size`."""
        return _Batches(self.columns, [piece for part in self.parts for piece in part.split(size)])


def _same(columns: Sequence[Tensor]) -> Tensor:
    """A number for each sample, the same for copies."""
    known: dict[str, int] = {}
    samples = (fingerprint(("", part) for part in sample) for sample in zip(*columns, strict=True))
    return torch.tensor([known.setdefault(sample, len(known)) for sample in samples])


def _drawn(count: int, unit: int, seed: int) -> Tensor:
    """The numbers below `count` in an order drawn by lot, in runs of `unit` that stay together."""
    first = unit * torch.randperm(count // unit, generator=torch.Generator().manual_seed(seed))
    return (first[:, None] + torch.arange(unit)).flatten()


def _copies_together(order: Tensor, same: Tensor, share: float) -> tuple[Tensor, int]:
    """The order with copies next to each other, and how many from its end to hold out, so that none of them has a copy
    among the others: at most a share of all, and of those that differ, or all copies of one sample."""
    first: dict[int, int] = {}
    places = torch.tensor([first.setdefault(number, place) for place, number in enumerate(same[order].tolist())])
    places, grouped = places.sort(stable=True)
    starts = [0, *(1 + torch.nonzero(places.diff())[:, 0]).tolist()]
    apart = round(share * len(order))
    few = starts[len(starts) - round(share * len(starts)) :]
    begin = next((start for start in few if start >= len(order) - apart), starts[-1])
    return order[grouped], len(order) - begin if apart and begin else 0


def _whole(gm: fx.GraphModule) -> Mapping[Any, Any] | None:
    """The dict that the network's forward takes as its only argument, as in the example; None where it takes others."""
    info = capture_info(gm)
    alone = len(info.args) == 1 and not info.kwargs and isinstance(info.args[0], Mapping)
    return info.args[0] if alone else None


def _checked(inputs: list[fx.Node], data: Any, whole: Mapping[Any, Any] | None) -> Iterator[Batch]:
    """Each item of the data as one tensor for each input of the graph."""
    items: Iterable[Any] = [data] if isinstance(data, Tensor) else data
    if isinstance(data, Mapping) or not isinstance(items, Iterable):
        raise CalibrationError(f"calibration must be a tensor or an iterable of batches, not {type(data).__name__}")
    first: Batch = ()
    for number, item in enumerate(items):
        batch = _tensors(inputs, item, number, whole)
        if len(batch) != len(inputs):
            raise CalibrationError(
                f"calibration batch {number} holds {len(batch)} inputs; the model takes {len(inputs)}"
            )
        for node, tensor, known in zip(inputs, batch, first or batch, strict=True):
            _check(node, tensor, number)
            if tensor.shape[1:] != known.shape[1:]:
                raise CalibrationError(
                    f"calibration batch {number}, input `{node.name}`: samples of shape {tuple(tensor.shape[1:])}, "
                    f"those before {tuple(known.shape[1:])}: bring all to one size"
                )
        if len({len(tensor) for tensor in batch}) != 1:
            raise CalibrationError(f"calibration batch {number}: the inputs differ in batch size")
        first = first or batch
        yield batch


def _tensors(inputs: list[fx.Node], item: Any, number: int, whole: Mapping[Any, Any] | None) -> Batch:
    if whole is not None and isinstance(item, (tuple, list)) and item and isinstance(item[0], Mapping):
        item = item[0]
    if isinstance(item, Mapping):
        names = [next((n for n in (str(node.target), node.name) if n in item), node.name) for node in inputs]
        keys = names if whole is None else [*whole]
        missing = [key for key in keys if key not in item]
        if missing:
            raise CalibrationError(f"calibration batch {number} lacks the inputs {missing}; it has {[*item]}")
        return tuple(pytree.tree_leaves([item[key] for key in keys]))
    if isinstance(item, (tuple, list)):
        if not item:
            raise CalibrationError(f"calibration batch {number} is an empty {type(item).__name__}")
        nested = item[0] if isinstance(item[0], (tuple, list)) else item
        item = nested[0] if len(inputs) == 1 else tuple(nested[: len(inputs)])
    return item if isinstance(item, tuple) else (item,)


def _check(node: fx.Node, tensor: Any, number: int) -> None:
    """Raise CalibrationError unless `tensor` can be fed to the placeholder `node`."""
    where = f"calibration batch {number}, input `{node.name}`"
    if not isinstance(tensor, Tensor):
        hint = ": torch.from_numpy makes one of it" if type(tensor).__name__ == "ndarray" else ""
        raise CalibrationError(f"{where}: expected a tensor, found {type(tensor).__name__}{hint}")
    expected = node.meta["val"]
    if tensor.ndim != expected.ndim or any(
        isinstance(want, int) and have != want for have, want in zip(tensor.shape[1:], expected.shape[1:], strict=True)
    ):
        shape = tuple(size if isinstance(size, int) else "*" for size in ("*", *expected.shape[1:]))
        lone = tensor.ndim == expected.ndim - 1
        hint = ": single samples want a batch, as torch.utils.data.DataLoader makes them" if lone else ""
        raise CalibrationError(f"{where}: shape {tuple(tensor.shape)} does not fit the model's {shape}{hint}")
    if tensor.dtype != expected.dtype:
        raise CalibrationError(f"{where}: dtype {tensor.dtype} is not the model's {expected.dtype}; convert it first")
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise CalibrationError(f"{where} holds NaN or infinity")


def _static_batch(inputs: list[fx.Node]) -> int | None:
    """The batch size that the graph is fixed to, or None where it may change."""
    fixed = [size for node in inputs if isinstance(size := node.meta["val"].shape[0], int)]
    return fixed[0] if fixed else None
