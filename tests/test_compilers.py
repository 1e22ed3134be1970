"""What fxprune hands on compiles: torch.compile, AOTInductor and ONNX give what the pruned network gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import fxprune as fp


class Plain(nn.Module):
    """Convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        )
        self.classifier = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """A block with a way around it, and a size that the forward reads off its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.outer = nn.Conv2d(16, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        return self.classifier(x.mean((2, 3)).view(x.shape[0], -1))


def transformer() -> VisionTransformer:
    """A vision transformer of one layer; its head is zero as torchvision makes it, so it is drawn anew."""
    network = VisionTransformer(16, 8, 1, 4, 16, 32, num_classes=3)
    nn.init.normal_(network.heads[0].weight)
    return network


Network = Callable[[], nn.Module]
NETWORKS: list[Network] = [Plain, Residual, transformer]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing compiled before is taken again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pruned(network: Network) -> fp.Result:
    """The network with statistics that are not those of its construction, at three quarters of its FLOPs."""
    model = network().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    result = fp.prune(model, images(2), budget=fp.Budget(flops=0.75), recipe="magnitude")
    assert result.report.after["flops"] < result.report.before["flops"]
    return result


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))


def check(compiled: Callable[[Tensor], Any], result: fp.Result) -> None:
    """At two batch sizes, neither of them that of the example."""
    for batch in (3, 5):
        with torch.no_grad():
            torch.testing.assert_close(compiled(images(batch)), result.model(images(batch)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_torch_compile_in_one_graph(network: Network) -> None:
    result = pruned(network)
    check(torch.compile(result.model, fullgraph=True, backend="aot_eager"), result)


@pytest.mark.parametrize(
    "network", [Plain, *(pytest.param(network, marks=pytest.mark.slow) for network in (Residual, transformer))]
)
def test_inductor(network: Network) -> None:
    result = pruned(network)
    check(torch.compile(result.model, fullgraph=True), result)


def test_gradients_through_a_compiled_network() -> None:
    result = pruned(Plain)
    compiled = torch.compile(result.model, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(images(3)).sum(), list(result.model.parameters()))
    wanted = torch.autograd.grad(result.model(images(3)).sum(), list(result.model.parameters()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "network", [Plain, *(pytest.param(network, marks=pytest.mark.slow) for network in (Residual, transformer))]
)
def test_aot_inductor_package(network: Network, tmp_path: Path) -> None:
    result = pruned(network)
    package = torch._inductor.aoti_compile_and_package(result.program(), package_path=str(tmp_path / "model.pt2"))
    check(torch._inductor.aoti_load_package(package), result)


@pytest.mark.parametrize("network", NETWORKS)
def test_onnx(network: Network, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported file")
    result = pruned(network)
    path = tmp_path / "model.onnx"
    torch.onnx.export(result.program(), (), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    check(lambda x: torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0]), result)
