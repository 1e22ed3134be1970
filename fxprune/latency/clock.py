"""The clock: how long a graph takes, and each piece of it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import capture_info
from fxprune.cost import batch_symbols
from fxprune.flops import FLOPS
from fxprune.latency.pieces import calls_of, described, split, without_writes
from fxprune.latency.table import Table, machine
from fxprune.latency.timing import Timing

SHORTEST, ROUNDS = 0.002, 5  # seconds for which a call is repeated, and how often that is timed: the least counts
LONGEST = 300  # characters of a call in the table; what is longer goes by a fingerprint

Times = dict[str, float]
_SIZES = re.compile(r"\d+(?=[],])")  # within brackets: how many there are stays
RECOMPILATIONS = 64


@dataclass(frozen=True)
class Measured:
    """What was measured of one graph.

    pieces: seconds of each piece, by its name.
    key: what the graph computes, and of which tensors.
    """

    pieces: Times
    key: str


class Clock:
    """Measures a graph that comes from `capture`, and what shrinking makes of it, on its device.

    manner: on which machine, and how.

    Raises OutputError where the table cannot be read, or written.
    """

    def __init__(self, gm: fx.GraphModule, timing: Timing) -> None:
        self._compiles = timing.compiled
        self._inputs = _batch_of(gm, timing.batch)
        tensors = (*gm.parameters(), *(leaf for leaf in self._inputs if isinstance(leaf, Tensor)))
        self._device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        batch = f"batch {timing.batch}" if capture_info(gm).dynamic_batch else "the batch that the network bakes in"
        self._table = Table(timing.path, f"{machine(self._device)}, {'compiled' if timing.compiled else 'eager'}")
        self.manner = f"{batch} on {self._table.machine}"
        self._compiled: dict[str, Callable[..., Any]] = {}

    def measure(self, gm: fx.GraphModule) -> Measured:
        """The seconds of each piece of a graph."""
        run = _Run(split(gm, self._compiles), self._seconds)
        with self._left_alone():
            run.run(*map(self._laid_out, self._inputs))
        self._table.save()
        return Measured(run.seconds, f"{len(run.keys)} pieces {_fingerprint(' '.join(run.keys))}")

    def whole(self, gm: fx.GraphModule, measured: Measured) -> float:
        """The seconds of the graph as one, which may be more or less than the sum of its pieces."""
        bare = without_writes(gm)
        inputs = tuple(map(self._laid_out, self._inputs))
        call = torch.compile(bare) if self._compiles else bare
        with self._left_alone():
            seconds = self._table.seconds(measured.key, lambda: least_seconds(call, inputs))
        self._table.save()
        return seconds

    @contextmanager
    def _left_alone(self) -> Iterator[None]:
        """No gradients, the user's random numbers as they were, and no piece that stops being compiled for the number
        of its sizes."""
        kind = self._device.type
        forked = {"devices": []} if kind == "cpu" else {"devices": [self._device], "device_type": kind}
        compiling = torch._dynamo.config.patch(recompile_limit=RECOMPILATIONS)
        with torch.no_grad(), torch.random.fork_rng(**forked), compiling:
            yield

    def _seconds(self, piece: fx.GraphModule, inputs: tuple[Any, ...]) -> tuple[str, float]:
        calls = calls_of(piece)
        text = "; ".join([*map(described, inputs), calls])
        key = text if len(text) <= LONGEST else f"{text[:LONGEST]} {_fingerprint(text)}"
        return key, self._table.seconds(key, lambda: least_seconds(self._callable(piece, calls, inputs), inputs))

    def _callable(self, piece: fx.GraphModule, calls: str, inputs: tuple[Any, ...]) -> Callable[..., Any]:
        """The piece as it is run: what a compiler fuses is compiled, once for all sizes; the rest are library calls."""
        if not self._compiles or any(node.target in FLOPS for node in piece.graph.nodes):
            return piece
        structure = f"{_SIZES.sub('', ' '.join(map(described, inputs)))}; {calls}"
        if structure not in self._compiled:
            self._compiled[structure] = torch.compile(piece, dynamic=True)
        return self._compiled[structure]

    def _laid_out(self, value: Any) -> Any:
        """Images go through a compiled network channels last, as inductor lays them out."""
        last = self._compiles and isinstance(value, Tensor) and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if last else value


class _Run(fx.Interpreter):
    """Runs the pieces of a graph one after another, and times each."""

    def __init__(self, parts: fx.GraphModule, time: Callable[[fx.GraphModule, tuple[Any, ...]], tuple[str, float]]):
        super().__init__(parts)
        self.seconds: Times = {}
        self.keys: list[str] = []
        self._time = time

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        piece = self.fetch_attr(target)
        # a compiler takes the sizes of parameters for fixed, and compiles for each anew
        args = tuple(value.detach() if isinstance(value, nn.Parameter) else value for value in args)
        key, self.seconds[str(target)] = self._time(piece, args)
        self.keys.append(key)
        return piece(*args, **kwargs)


def least_seconds(call: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
    """The least time of a call among several: what else the machine does only adds."""
    call(*inputs)
    number = max(1, round(SHORTEST / _seconds_each(call, inputs, 1)))
    return min(_seconds_each(call, inputs, number) for _ in range(ROUNDS))


def _seconds_each(call: Callable[..., Any], inputs: tuple[Any, ...], number: int) -> float:
    """The time of a call, of so many in a row; an accelerator is waited for."""
    waits = any(isinstance(value, Tensor) and value.device.type != "cpu" for value in pytree.tree_leaves(inputs))
    started = time.perf_counter()
    for _ in range(number):
        call(*inputs)
    if waits:
        torch.accelerator.synchronize()
    return (time.perf_counter() - started) / number


def _batch_of(gm: fx.GraphModule, batch: int) -> tuple[Any, ...]:
    """The example's first input as often as the batch is large; what has no batch, or a fixed one, as it is."""
    info = capture_info(gm)
    leaves = pytree.tree_leaves((info.args, dict(info.kwargs)))
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    batches = batch_symbols(gm) if info.dynamic_batch else frozenset()
    return tuple(
        leaf.detach()[:1].expand(batch, *leaf.shape[1:]).clone() if _leads(node, batches) else leaf
        for node, leaf in zip(nodes, leaves, strict=True)
    )


def _leads(node: fx.Node, batches: frozenset[sympy.Symbol]) -> bool:
    """Whether an input's first axis is that of the batch."""
    value = node.meta.get("val")
    size = value.shape[0] if isinstance(value, Tensor) and value.ndim else None
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols & batches)


def _fingerprint(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
