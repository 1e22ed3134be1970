"""Shrink: golden text, sizes, metadata, and what it must not touch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.export import export

import fxprune as fp
from fxprune.errors import RewriteError
from fxprune.passes.base import clone
from fxprune.passes.shrink import Shrink
from tests.networks import build, calls, images, modified, random_plan


def test_golden_text() -> None:
    gm = fp.capture(build("Grouped"), images())
    small = fp.shrink(gm, fp.Plan({"conv1.0.weight": [0, 4], "conv2.0.weight": [0, 1, 2, 4, 5, 6]}))
    assert calls(small) == (
        "conv2d[2, 8, 8] = conv2d.default(x, [1, 1], [1, 1])\n"
        "batch_norm[2, 8, 8] = batch_norm.default(conv2d, False, False)\n"
        "relu[2, 8, 8] = relu.default(batch_norm)\n"
        "conv2d_1[6, 8, 8] = conv2d.default(relu, [1, 1], [1, 1], [1, 1], 2)\n"
        "batch_norm_1[6, 8, 8] = batch_norm.default(conv2d_1, False, False)\n"
        "relu_1[6, 8, 8] = relu.default(batch_norm_1)\n"
        "conv2d_2[4, 8, 8] = conv2d.default(relu_1)\n"
        "batch_norm_2[4, 8, 8] = batch_norm.default(conv2d_2, False, False)\n"
        "relu_2[4, 8, 8] = relu.default(batch_norm_2)\n"
        "mean[4] = mean.dim(relu_2, [2, 3])\n"
        "linear[3] = linear.default(mean)"
    )
    assert small.get_parameter("conv2.0.weight").shape == (6, 1, 3, 3)


def test_padding_shrinks_with_its_partner() -> None:
    gm = fp.capture(build("Padded"), images())
    small = fp.shrink(gm, fp.Plan({"stem.0.weight": [1, 2, 3], "conv.0.weight": [1, 2, 3]}))
    assert "pad[6, 4, 4] = pad.default(slice_3, [0, 0, 0, 0, 1, 2])" in calls(small)


def test_metadata_stays_true() -> None:
    gm = fp.capture(build("Shuffle"), images())
    small = fp.shrink(gm, random_plan(fp.analyze(gm), 0))
    values = {node.name: node for node in small.graph.nodes}
    assert [node.name for node in gm.graph.nodes] == list(values)
    for node in gm.graph.nodes:
        twin = values[node.name]
        assert twin.meta.get("stack_trace") == node.meta.get("stack_trace")
        assert twin.meta.get("nn_module_stack") == node.meta.get("nn_module_stack")
    interpreter = torch.fx.Interpreter(small)
    for batch in (1, 3):
        assert interpreter.run(images(batch), enable_io_processing=False)[0].shape == (batch, 3)
    assert isinstance(values["linear"].meta["val"].shape[0], torch.SymInt)


def test_nothing_is_shared_with_the_original() -> None:
    model = build("Residual")
    before = copy.deepcopy(model.state_dict())
    gm = fp.capture(model, images())
    small = fp.shrink(gm, fp.Plan({"conv1.0.weight": [0, 2]}))
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fp.analyze(gm).by_name["conv1.0.weight"].width == 6


def test_an_empty_plan_changes_nothing() -> None:
    gm = fp.capture(build("Depthwise"), images())
    assert torch.equal(fp.shrink(gm, fp.Plan({}))(images()), gm(images()))


def test_the_pass_runs_once_and_says_so() -> None:
    gm = clone(fp.capture(build("Residual"), images()))
    step = Shrink(fp.Plan({"conv1.0.weight": [0, 2]}))
    assert modified(step(gm))
    assert not modified(step(gm))
    with pytest.raises(fp.PlanError, match="has been shrunk already"):
        fp.shrink(gm, fp.Plan({}))


def test_without_a_plan_it_says_what_is_missing() -> None:
    with pytest.raises(RewriteError, match="Shrink has no plan"):
        Shrink()(clone(fp.capture(build("Plain"), images())))


def test_an_exported_program_shrinks_too() -> None:
    program = export(build("Residual"), (images(),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    gm = fp.capture(program)
    plan = fp.Plan({"conv1.0.weight": [0, 2]})
    assert fp.verify(gm, fp.shrink(gm, plan), plan).ok
