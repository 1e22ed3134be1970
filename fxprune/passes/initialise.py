"""Initialise: modules draw their weights anew, each by its own scheme, and copies stop being twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fxprune.codegen.forward import ReadableCodeGen
from fxprune.codegen.tree import named_tensors
from fxprune.coupling.kept import Kept
from fxprune.errors import RewriteError
from fxprune.passes.base import COUPLING, DENSE, PLAN, require, require_finite, state
from fxprune.randomness import seeded

NOTES = "initialise_notes"


@dataclass(frozen=True, eq=False)
class Initialise(PassBase):
    """Draws weights anew, in place, by the `reset_parameters` of each module; a BatchNorm's statistics start over, too.

    everything: whether all modules draw, or only those with a tensor that has not the original's shape, or in which
        units were repeated. A tied parameter is drawn by the first module that has it.
    seed: of the draw; the state of torch's own generators stays as it is.

    Before: a graph that Lift has made, its tensors shrunk or widened. After: the same graph, with the same names,
    shapes, dtypes, devices and `requires_grad`. What a network did to its weights once its modules had drawn them is
    lost: a scheme of its own, or the last BatchNorm of a block that starts at zero.

    A parameter that no such module owns keeps its values; where units were repeated, the second copy and later ones
    take values drawn from the parameter's own, for twins would train alike. Each is named in
    `meta["fxprune"]["initialise_notes"]`, a tuple of sentences.
    Postcondition: all parameters and buffers are finite.
    """

    everything: bool = True
    seed: int = 0

    def requires(self, graph_module: fx.GraphModule) -> None:
        """The graph has modules; and where it is compared with the original, there is one."""
        if not isinstance(graph_module.graph._codegen, ReadableCodeGen):
            raise RewriteError("Initialise needs a graph of modules: run Lift first")
        if not self.everything:
            require(graph_module, "Initialise", DENSE, PLAN, COUPLING)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Draw; a second run changes nothing."""
        if NOTES in state(graph_module):
            return PassResult(graph_module, False)
        copies, draws = _copies(graph_module), _draws(graph_module)
        owned = {name for names in draws for name in names}
        if not self.everything:
            changed = {*copies, *_other_shapes(graph_module)}
            draws = {names: draw for names, draw in draws.items() if not changed.isdisjoint(names)}
        tied = _aliases(graph_module)
        unowned = [name for name, _ in graph_module.named_parameters() if owned.isdisjoint(tied[name])]
        with seeded(self.seed), torch.no_grad():
            for draw in reversed(draws.values()):  # the first module that has a tied parameter has the last word
                draw()
            for name in unowned:
                if name in copies:
                    _redraw(graph_module.get_parameter(name), copies[name])
        state(graph_module)[NOTES] = tuple(_note(name, name in copies) for name in unowned)
        return PassResult(graph_module, bool(draws) or not copies.keys().isdisjoint(unowned))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """All is finite."""
        require_finite(graph_module, "Initialise")


def _draws(gm: fx.GraphModule) -> dict[tuple[str, ...], Callable[[], None]]:
    """How each module draws the tensors of its own, by their names."""
    found = {}
    for path, module in gm.named_modules():
        draw = getattr(module, "reset_parameters", None)
        names = tuple(f"{path}.{leaf}" for leaf in (*module._parameters, *module._buffers))
        if callable(draw) and names:
            found[names] = draw
    return found


def _aliases(gm: fx.GraphModule) -> dict[str, set[str]]:
    """All names of each tensor, by each of them."""
    names: dict[int, set[str]] = {}
    tensors = named_tensors(gm)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), set()).add(name)
    return {name: names[id(tensor)] for name, tensor in tensors.items()}


def _other_shapes(gm: fx.GraphModule) -> set[str]:
    """The tensors that have not the shape that they have in the original."""
    dense: Mapping[str, Tensor] = named_tensors(state(gm)[DENSE])
    return {name for name, tensor in named_tensors(gm).items() if name in dense and dense[name].shape != tensor.shape}


def _copies(gm: fx.GraphModule) -> dict[str, Tensor]:
    """For each tensor in which units were repeated: which of its elements are second or later copies of another."""
    found = state(gm)
    if PLAN not in found or not found[PLAN].repeats:
        return {}
    kept = Kept.under(found[COUPLING], found[PLAN])
    copies = {}
    for name, tensor in named_tensors(found[DENSE]).items():
        fields = found[COUPLING].param_fields.get(name, ())
        if any(bool((kept.counts[item.ids] > 1).any()) for item in fields):
            sources = kept.cut(torch.arange(tensor.numel()).reshape(tensor.shape), fields)
            ordered, order = sources.flatten().sort(stable=True)
            again = torch.zeros(sources.numel(), dtype=torch.bool)
            again[order[1:]] = ordered[1:] == ordered[:-1]
            copies[name] = again.reshape(sources.shape)
    return copies


def _redraw(parameter: Tensor, copies: Tensor) -> None:
    """Give the copies other values of the same tensor, each at random and none of them twice."""
    chosen = torch.randperm(parameter.numel())[: int(copies.sum())].to(parameter.device)
    parameter[copies.to(parameter.device)] = parameter.flatten()[chosen]


def _note(name: str, repeated: bool) -> str:
    values = "its copies hold other values of its own" if repeated else "it keeps its values"
    return f"`{name}` is not drawn anew, as no module draws it by itself: {values}"
