"""What all passes share: copying a graph, reading and replacing its tensors, and keeping its metadata true."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.calibrate.homes import BATCH_NORM
from fxprune.calibrate.judge import forget
from fxprune.calls import attribute, state_of
from fxprune.capture import META, HandedOn
from fxprune.codegen.forward import ReadableCodeGen
from fxprune.coupling import analyze
from fxprune.errors import CalibrationError, RewriteError, WeightsError, describe
from fxprune.types import Coupling

# keys of what passes hand on in meta[META]
DENSE, PLAN, COUPLING = "dense", "plan", "coupling"  # dense: the graph just before Shrink
TEACHER, CALIBRATION, COST = "teacher", "calibration", "cost"  # teacher: the graph with the user's own weights
LATENCIES = "latencies"  # what was measured, where the budget limits the latency
ANALYSED = "analysed"  # the last coupling that was found, and of what
UNLIKENESS = "unlikeness"  # how far the images are from what the BatchNorms remember
STAGES = "stages"  # (name, held-out error before, after) of each stage that corrects
CORRECTION = "fxprune_correction"  # marks, in node.meta, the additions that Fuse takes away


def state(gm: fx.GraphModule) -> dict[str, Any]:
    """What the passes hand on with a graph."""
    found: dict[str, Any] = gm.meta.setdefault(META, HandedOn())
    return found


def analysed(gm: fx.GraphModule, heads: bool) -> Coupling:
    """As `analyze`; the coupling that an earlier pass has found where the graph and its tensors are still the same."""
    values = [node.meta.get("val") for node in gm.graph.nodes]
    tensors = [attribute(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"]
    key = (heads, str(gm.graph), [*map(id, values)], [*map(state_of, tensors)])
    known: _Analysed | None = state(gm).get(ANALYSED)
    if known is None or known.key != key:
        known = _Analysed(key, analyze(gm, heads), (values, tensors))
        state(gm)[ANALYSED] = known
    return known.coupling


@dataclass(frozen=True, eq=False)
class _Analysed:
    """A coupling and of what it is; what is alive has its id to itself."""

    key: tuple[Any, ...]
    coupling: Coupling
    alive: tuple[Any, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Analysed:
        return self


def teacher(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with the user's own weights: what corrections aim at."""
    found = state(gm)
    original: fx.GraphModule = found[TEACHER] if TEACHER in found else found[DENSE]
    return original


def release_images(*graphs: fx.GraphModule) -> None:
    """Let go of the calibration images, in what was handed on with the graphs and in what is known of their outputs."""
    for graph in graphs:
        state(graph).pop(CALIBRATION, None)
        forget(graph)


def note_stage(gm: fx.GraphModule, name: str, before: float, after: float) -> None:
    """Hand on the held-out error before and after a stage."""
    state(gm)[STAGES] = (*state(gm).get(STAGES, ()), (name, before, after))


def require(gm: fx.GraphModule, reader: str, *keys: str) -> None:
    """Raise RewriteError unless the earlier passes have handed on `keys`."""
    missing = [key for key in keys if key not in state(gm)]
    if missing == [CALIBRATION]:
        raise CalibrationError(f"{reader} needs images to correct by: give a few hundred as calibration, unlabelled")
    if missing:
        makers = " and ".join(dict.fromkeys("Shrink" if key == DENSE else "Choose" for key in reversed(missing)))
        raise RewriteError(f"{reader} needs {', '.join(missing)} in gm.meta[{META!r}]: run {makers} before it")


def require_operators(gm: fx.GraphModule, reader: str) -> None:
    """Raise RewriteError where the graph has been lifted: no calls of operators are left to work on."""
    if isinstance(gm.graph._codegen, ReadableCodeGen):
        raise RewriteError(f"{reader} works on ATen calls, and Lift has run: put it before Lift, or capture anew")


def require_fused(gm: fx.GraphModule, reader: str) -> None:
    """Raise RewriteError where corrections are still nodes of their own, which the dense network has not."""
    if any(node.meta.get(CORRECTION) for node in gm.graph.nodes):
        raise RewriteError(f"{reader} came too early: Reconstruct left its corrections to Fuse. Put Fuse before it")


def replace_tensor(gm: fx.GraphModule, name: str, value: Tensor) -> None:
    """Put a new tensor of the same kind under `name`, and under all other names of the old one, which may belong to the
    user's model."""
    path, _, leaf = name.rpartition(".")
    owner = gm.get_submodule(path)
    old = getattr(owner, leaf)
    value = laid_out_as(old, value)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    setattr(owner, leaf, new)
    for module in gm.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in tables:
            tensors.update({alias: new for alias, tensor in tensors.items() if tensor is old})


def laid_out_as(old: Tensor, new: Tensor) -> Tensor:
    """A tensor with channels last in memory where the one that it replaces has them there."""
    layout = torch.channels_last
    if new.ndim != 4 or old.is_contiguous() or not old.is_contiguous(memory_format=layout):
        return new
    return new.contiguous(memory_format=layout)


def require_finite(gm: fx.GraphModule, writer: str) -> None:
    """Raise RewriteError where something that corrections write holds NaN or infinity."""
    for name in not_finite(gm):
        raise RewriteError(f"{writer} left NaN or infinity in `{name}`")


def refuse_not_finite(gm: fx.GraphModule) -> None:
    """Raise WeightsError where a parameter or a statistic of a BatchNorm holds NaN or infinity from the beginning."""
    for name in not_finite(gm):
        raise WeightsError(f"`{name}` holds NaN or infinity: nothing can be learned from such a network")


def not_finite(gm: fx.GraphModule) -> Iterator[str]:
    """The names of the parameters and of the statistics of BatchNorms that hold NaN or infinity.

    Other buffers are constants that nothing corrects: infinity in a mask is as it should be.
    """
    norms = (node for node in gm.graph.nodes if node.target is BATCH_NORM)
    statistics = {str(value.target) for norm in norms for value in norm.args[3:5] if isinstance(value, fx.Node)}
    buffers = ((name, buffer) for name, buffer in gm.named_buffers(remove_duplicate=False) if name in statistics)
    for name, tensor in (*gm.named_parameters(), *buffers):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            yield name


def clone(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of graph and module tree that shares the tensors with the original."""
    shared = [*gm.parameters(), *gm.buffers(), gm.meta]  # what the passes hand on may be large
    twin = copy.deepcopy(gm, {id(value): value for value in shared})
    twin.meta = {**gm.meta, META: HandedOn(state(gm))}
    return twin


def deep_copy(network: nn.Module) -> nn.Module:
    """A copy with tensors of its own; what the passes hand on with a graph is shared, for it may be large."""
    meta = getattr(network, "meta", None)
    return copy.deepcopy(network, {} if meta is None else {id(meta): meta})


def own_copy(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy with buffers of its own: running it may write them, as a BatchNorm does that learns in evaluation, too."""
    twin = clone(gm)
    copies: dict[int, Tensor] = {}
    for module in twin.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    return twin


def replace_tensors(gm: fx.GraphModule, make: Callable[[str, Tensor], Tensor]) -> None:
    """Replace each parameter and buffer by `make(name, tensor)`; aliases of one tensor stay aliases."""
    made: dict[int, Tensor] = {}
    for module_name, module in gm.named_modules(remove_duplicate=False):
        prefix = f"{module_name}." if module_name else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    value = laid_out_as(parameter, make(prefix + name, parameter))
                    made[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), make(prefix + name, buffer))


class _Refresh(fx.Interpreter):
    """Runs a graph on fake tensors, and writes what it finds to the metadata."""

    def __init__(self, gm: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(gm)
        self.mode = mode
        self.current: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        if n.op == "get_attr":
            real = super().run_node(n)
            result = self.mode.from_tensor(real, static_shapes=True) if isinstance(real, Tensor) else real
        else:
            result = super().run_node(n)
        if "val" in n.meta:
            n.meta["val"] = result
        return result


@contextmanager
def without_guards(gm: fx.GraphModule) -> Iterator[None]:
    """Reading a symbolic size as a number inside leaves the size free; else it would be fixed in every graph that
    shares its symbol, the user's own program among them."""
    mode = detect_fake_mode([node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"])
    if not isinstance(mode, FakeTensorMode) or mode.shape_env is None:
        yield
        return
    with mode.shape_env.suppress_guards():
        yield


def refresh_metadata(gm: fx.GraphModule) -> None:
    """Make `meta["val"]` of every node true again by running the graph on fake tensors.

    Raises RewriteError naming the node at which the graph no longer fits together.
    """
    inputs = [node.meta["val"] for node in gm.graph.nodes if node.op == "placeholder"]
    mode = detect_fake_mode(inputs)
    if not isinstance(mode, FakeTensorMode):
        raise RewriteError("the graph carries no fake tensors in its metadata: capture it with fxprune.capture")
    interpreter = _Refresh(gm, mode)
    interpreter.extra_traceback = False
    try:
        # without the Python dispatcher, kernels such as that of LSTM ask for sizes as numbers
        with mode, torch.no_grad(), without_guards(gm), enable_python_dispatcher():
            interpreter.run(*inputs, enable_io_processing=False)
    except Exception as error:
        where = f" at {describe(interpreter.current)}" if interpreter.current is not None else ""
        raise RewriteError(f"the rewritten graph does not fit together{where}: {error}") from error
