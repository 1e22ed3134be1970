"""Conformance: every pass, on a small network in the state that it needs, through one battery of checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase
from torch.fx.passes.infra.pass_manager import PassManager
from torch.utils import _pytree as pytree

from fxprune.calls import concrete
from fxprune.codegen.tree import named_tensors
from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from tests.networks import modified
from tests.passes.prepared import MODELS, PASSES, images, prepared, shared

Picture = tuple[str, dict[str, Tensor], list[str]]


def picture(gm: fx.GraphModule) -> Picture:
    """Graph, tensors, and the shapes in the metadata."""
    tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(gm).items()}
    return str(gm.graph), tensors, [str(sizes(node.meta.get("val"))) for node in gm.graph.nodes]


def sizes(value: Any) -> list[Any]:
    """Shapes and dtypes of the tensors in a value."""
    return [(tuple(leaf.shape), leaf.dtype) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(first: Picture, second: Picture) -> bool:
    equal = first[1].keys() == second[1].keys() and all(torch.equal(t, second[1][n]) for n, t in first[1].items())
    return equal and first[0] == second[0] and first[2] == second[2]


def each(function: Any) -> Any:
    """Run a test on every pass and network."""
    by_name = pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.__name__)
    return by_name(pytest.mark.parametrize("name", MODELS)(function))


@each
def test_modified_is_honest_and_a_second_run_changes_nothing(kind: type[PassBase], name: str) -> None:
    gm, step = prepared(kind, name)
    before = picture(gm)
    changed = modified(step(gm))
    after = picture(gm)
    assert changed == (not same(before, after))
    assert not modified(step(gm))
    assert same(after, picture(gm))


def test_every_rewriting_pass_has_something_to_do_here() -> None:
    idle = {"Choose", "Compare", "Configure", "Synthesise", "Verify"}
    for kind in PASSES:
        changes = [modified(step(gm)) for gm, step in (prepared(kind, name) for name in MODELS)]
        assert any(changes) != (kind.__name__ in idle), kind


@each
def test_it_runs_in_a_pass_manager(kind: type[PassBase], name: str) -> None:
    gm, step = prepared(kind, name)
    alone, _ = prepared(kind, name)
    checked = []

    def check(module: nn.Module) -> None:
        assert isinstance(module, fx.GraphModule)
        module.graph.lint()
        checked.append(module)

    manager = PassManager(passes=[step], steps=3, run_checks_after_each_pass=True)
    manager.add_checks(check)
    result = manager(gm)
    changed = modified(step(alone))
    assert result.graph_module is gm and result.modified == changed
    assert len(checked) == 2 + changed  # before, after, and after the second step, which changes nothing
    assert same(picture(gm), picture(alone))


@each
def test_the_graph_is_sound_and_its_code_is_up_to_date(kind: type[PassBase], name: str) -> None:
    gm, step = prepared(kind, name)
    step(gm)
    gm.graph.lint()
    assert gm.code == gm.graph.python_code("self").src
    x = images(3)
    with torch.no_grad():
        assert torch.equal(gm(x), pytree.tree_leaves(fx.Interpreter(gm).run(x, enable_io_processing=False))[0])


@each
def test_metadata_stays_true(kind: type[PassBase], name: str) -> None:
    gm, step = prepared(kind, name)
    kept = {node.name: dict(node.meta) for node in gm.graph.nodes}
    step(gm)
    x, values = images(5, 12, 14), Values(gm)
    with torch.no_grad():
        values.run(x, enable_io_processing=False)
    placeholder = next(node for node in gm.graph.nodes if node.op == "placeholder")
    known = {placeholder.meta["val"].shape[dim].node.expr: x.shape[dim] for dim in (0, 2, 3)}
    for node in gm.graph.nodes:
        for key in ("nn_module_stack", "stack_trace") if node.name in kept and kind is not Lift else ():
            assert node.meta.get(key) == kept[node.name].get(key), (node.name, key)
        if node.op == "call_function" and kind is not Lift:
            assert node.meta.get("nn_module_stack") and node.meta.get("stack_trace"), node.name
        if node.op != "output":
            assert at(node.meta["val"], known) == sizes(values.seen[node]), node.name


class Values(fx.Interpreter):
    """Remembers what every node gives."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]


def at(value: Any, known: dict[Any, int]) -> list[Any]:
    """Shapes and dtypes of the tensors in a fake value, where the symbols have these sizes."""

    def size(number: Any) -> int:
        return int(number.node.expr.subs(known)) if isinstance(number, torch.SymInt) else number

    return [(tuple(map(size, shape)), dtype) for shape, dtype in sizes(value)]


@each
def test_signature_and_dynamic_sizes_stay(kind: type[PassBase], name: str) -> None:
    gm, step = prepared(kind, name)
    inputs = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    step(gm)
    after = [node for node in gm.graph.nodes if node.op == "placeholder"]
    assert [node.name for node in after] == inputs
    assert [[concrete(size) for size in node.meta["val"].shape] for node in after] == [[2, 3, 8, 10]]
    assert not any(is_fixed(after[0].meta["val"].shape[dim]) for dim in (0, 2, 3))
    with torch.no_grad():
        for batch, size in ((1, 8), (2, 20), (5, 8)):
            assert gm(images(batch, size)).shape == (batch, 3)


def is_fixed(size: Any) -> bool:
    """Whether a size is a number, or a guard may have made it one."""
    if not isinstance(size, torch.SymInt):
        return True
    environment: Any = size.node.shape_env
    return size.node.maybe_as_int() is not None or bool(environment.guards)


@each
def test_the_users_module_stays_as_it_is(kind: type[PassBase], name: str) -> None:
    model, gm, step = shared(kind, name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    step(clone(gm))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
