"""Quantization: what is pruned quantizes as well as what was there before, and what is quantized is not pruned."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_export_module
from torch.export import Dim, ExportedProgram, export
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import fxprune as fp
from fxprune import demo
from fxprune.errors import CaptureError
from tests.networks import NETWORKS, build, images

HALF = fp.Budget(flops=0.5)


@cache
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Images to calibrate with, and images to test with, and their labels."""
    train, test = demo.load()
    return train.images[:128], test.images, test.labels


def exported(model: nn.Module, x: Tensor, strict: bool = True) -> ExportedProgram:
    return export(model, (x[:2],), dynamic_shapes=({0: Dim.AUTO},), strict=strict)


def prepared(program: ExportedProgram, data: Tensor) -> Any:
    """With observers that have seen the data."""
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        observed(data)
    return observed


def int8(program: ExportedProgram, data: Tensor) -> fx.GraphModule:
    return convert_pt2e(prepared(program, data))


def quantized_calls(gm: fx.GraphModule) -> Counter[str]:
    """How many calls there are of each quantizing operator, and of each other that reads a quantized value."""
    kinds: Counter[str] = Counter()
    for node in gm.graph.nodes:
        name = str(node.target)
        if "quantize" in name or any("dequantize" in str(source.target) for source in node.all_input_nodes):
            kinds[name] += 1
    return kinds


def difference(found: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The norm of the difference relative to that of what is wanted."""
    with torch.no_grad():
        y = wanted(x)
        return float((found(x) - y).norm() / y.norm())


@cache
def dense() -> tuple[ExportedProgram, fx.GraphModule]:
    """The trained network of the demo, and its int8 form."""
    program = exported(demo.trained(), digits()[0])
    return program, int8(program, digits()[0])


def pruned(way: str) -> ExportedProgram:
    """The trained network of the demo at half its FLOPs, by different ways."""
    data = digits()[0]
    if way == "prune":
        return fp.prune(demo.trained(), data[:2], budget=HALF, calibration=data, recipe="fast").program()
    program = exported(demo.trained(), data, strict=way == "strict")
    return fp.prune_exported(program, budget=HALF, calibration=data, recipe="fast")


@pytest.mark.parametrize("way", ["prune", "strict", "non-strict"])
def test_int8_is_as_near_to_pruned_as_to_dense(way: str) -> None:
    data, x, labels = digits()
    big, big_int8 = dense()
    small = pruned(way)
    small_int8 = int8(small, data)
    assert quantized_calls(small_int8) == quantized_calls(big_int8)
    assert quantized_calls(small_int8)["quantized_decomposed.quantize_per_tensor.default"] == 10
    losses = [difference(q, p.module(), x) for p, q in ((big, big_int8), (small, small_int8))]
    assert 1e-4 < losses[1] < 2 * losses[0]
    with torch.no_grad():
        right = [float((network(x).argmax(1) == labels).float().mean()) for network in (small.module(), small_int8)]
    assert right[1] > right[0] - 0.01
    assert small_int8(x[:5]).shape == (5, 10)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "Dense" else name for name in NETWORKS]
)
def test_as_many_calls_are_quantized_as_without_pruning(name: str) -> None:
    model, data = build(name), images(16)
    program = exported(model, data)
    wanted = quantized_calls(int8(program, data))
    assert wanted["quantized_decomposed.quantize_per_tensor.default"] >= 3
    small = fp.prune_exported(program, budget=HALF, recipe="magnitude")
    assert quantized_calls(int8(small, data)) == wanted
    result = fp.prune(model, data[:2], budget=HALF, recipe="magnitude")
    assert quantized_calls(int8(result.program(), data)) == wanted


def test_weights_alone_are_quantized_in_the_modules_of_the_result() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    data = torch.randn(256, 16)
    result = fp.prune(model, data[:2], budget=HALF, calibration=data, recipe="fast")
    losses = []
    for network in (model, result.model):
        small = copy.deepcopy(network)
        quantize_(small, Int8WeightOnlyConfig())
        assert [type(p).__name__ for p in small.parameters()] == ["Int8Tensor", "Parameter"] * 3
        losses.append(difference(small, network, data))
    assert 1e-4 < losses[1] < 2 * losses[0]


PRUNE_FIRST = "prune the network in floating point first, and quantize what comes out"


def test_a_quantized_program_is_refused() -> None:
    data, _, _ = digits()
    program = export(dense()[1], (data[:2],), strict=True)
    for refused in (
        lambda: fp.capture(program),
        lambda: fp.prune_exported(program, budget=HALF, calibration=data),
        lambda: fp.prune(program, budget=HALF, calibration=data),
        lambda: fp.prune(dense()[1], data[:2], budget=HALF, calibration=data),
    ):
        with pytest.raises(CaptureError, match=f"quantized already: `dequantize_per_channel.*{PRUNE_FIRST}"):
            refused()


def test_a_network_that_is_being_quantized_is_refused() -> None:
    data, _, _ = digits()
    with pytest.raises(CaptureError, match=f"prepared for quantization: `activation_post_process_1.*{PRUNE_FIRST}"):
        fp.capture(prepared(dense()[0], data), data[:2])


def test_a_module_with_quantized_weights_is_refused() -> None:
    model = demo.trained()
    quantize_(model, Int8WeightOnlyConfig())
    with pytest.raises(CaptureError, match=f"`classifier.weight` is quantized already .Int8Tensor.: {PRUNE_FIRST}"):
        fp.prune(model, digits()[0][:2], budget=HALF, recipe="magnitude")


class LinearWithPackedWeights(nn.Linear):
    """Stands for the quantized modules of torch.ao, which are deprecated."""

    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"


def test_a_module_with_packed_weights_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), LinearWithPackedWeights(4, 4))
    with pytest.raises(CaptureError, match=f"`1` is quantized already .LinearWithPackedWeights.: {PRUNE_FIRST}"):
        fp.capture(model, torch.randn(2, 4))


class Listed(nn.Module):
    """Returns a tuple, as aot_export_module wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.model(x),)


@pytest.mark.parametrize("complete", [False, True], ids=["without its parameters", "with its parameters"])
def test_a_graph_with_parameters_as_inputs_says_how_to_capture_instead(complete: bool) -> None:
    program, x = exported(build("Plain"), images()), images()
    specs = [spec.target for spec in program.graph_signature.input_specs if spec.target is not None]
    tensors = [program.state_dict[name] for name in specs] if complete else []
    with pytest.raises(
        CaptureError, match="`conv2d` .* takes its weight from the input `p_conv1_weight`.*Capture the nn.Module"
    ):
        fp.capture(program.graph_module, (*tensors, x))
    model = Listed(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    rows = torch.randn(2, 4)
    with torch.no_grad():
        gm, _ = aot_export_module(model, (rows,), trace_joint=False)
    assert isinstance(gm, fx.GraphModule)
    inputs = [*(parameter.detach() for parameter in model.parameters() if complete), rows]
    with pytest.raises(CaptureError, match="`addmm` .* takes its weight from the input .* Capture the nn.Module"):
        fp.capture(gm, tuple(inputs))


def test_a_traced_graph_that_wants_its_parameters_says_how_to_capture_instead() -> None:
    graph = fx.Graph()
    weight, x = graph.placeholder("weight"), graph.placeholder("x")
    graph.output(graph.call_function(nn.functional.linear, (x, weight)))
    gm = fx.GraphModule(nn.Module(), graph)
    with pytest.raises(CaptureError, match="holds no parameters and takes 2 inputs, where 1 are given: .*`weight`"):
        fp.capture(gm, torch.randn(2, 4))
    with pytest.raises(CaptureError, match="`linear` .* takes its weight from the input `weight`"):
        fp.capture(gm, (torch.randn(8, 4), torch.randn(2, 4)))


def test_the_module_of_a_program_is_captured() -> None:
    program = exported(build("Plain"), images())
    result = fp.prune(program.module(), images(), budget=HALF, recipe="magnitude")
    assert result.model(images(3)).shape == (3, 3)
