"""The file of a result: builds, loads and computes the same, alone, with tidy text."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import types
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capture import capture
from fxprune.codegen import module_source, save
from fxprune.coupling import analyze
from fxprune.passes.lift import Lift
from fxprune.passes.shrink import shrink
from fxprune.passes.tidy import Tidy
from tests.networks import NETWORKS, build, images, random_plan


def lifted(model: nn.Module, *inputs: Tensor, cut: bool = False) -> fx.GraphModule:
    gm = copy.deepcopy(capture(model, inputs))
    gm = shrink(gm, random_plan(analyze(gm), seed=0)) if cut else gm
    for step in (Tidy(), Lift()):
        step(gm)
    return gm


def rebuilt(gm: fx.GraphModule) -> nn.Module:
    """The last class of the file, built without arguments and loaded strictly."""
    module = types.ModuleType("model")
    exec(module_source(gm), vars(module))
    network = [item for item in vars(module).values() if inspect.isclass(item) and item.__module__ == "model"][-1]()
    assert isinstance(network, nn.Module)
    network.load_state_dict({name: tensor.clone() for name, tensor in gm.state_dict().items()})
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_builds_the_same_network(name: str) -> None:
    gm = lifted(build(name), images(), cut=True)
    network = rebuilt(gm)
    assert type(network).__name__ == name
    assert list(network.state_dict()) == list(gm.state_dict())
    assert [key for key, _ in network.named_parameters()] == [key for key, _ in gm.named_parameters()]
    assert torch.equal(network(images()), gm(images()))
    body = "\n".join(f"    {line}" if line else "" for line in gm.code.strip().splitlines())
    assert body in module_source(gm), "forward is the code of the graph"


def test_the_text_reads_like_hand_written() -> None:
    expected = '''\
        """Residual, as fxprune left it: 583 parameters. Needs only torch.

        To load it, with the weights beside this file:

            from model import Residual
            from safetensors.torch import load_file

            net = Residual()
            net.load_state_dict(load_file("model.safetensors"))
            net.eval()
        """

        import torch.nn.functional as F
        from torch import Tensor, nn


        class Residual(nn.Module):
            """Takes x of shape (N, 3, 8, 8)."""

            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)])
                self.conv1 = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)])
                self.conv2 = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)])
                self.head = nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                x = self.stem[0](x)
        '''
    assert module_source(lifted(build("Residual"), images())).startswith(dedent(expected))


class Odd(nn.Module):
    """Frozen, tied, shared, unsaved, unused, of other types, under numbers; a result in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"0": nn.Linear(3, 3), "x": nn.ReLU()})
        self.shared = self.first
        self.tied, self.unused = nn.Linear(3, 3), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.tied.weight = self.first.get_parameter("0.weight")
        self.first.get_parameter("0.bias").requires_grad_(False)
        self.register_buffer("shift", torch.tensor([1.0, float("inf"), -2.0]), persistent=False)
        self.register_buffer("table", torch.arange(3))
        self.scales = nn.ParameterList([torch.rand(3)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.tied(self.first["x"](self.first["0"](x))) * self.scales[0]
        return {"y": y.clamp(max=self.get_buffer("shift")), "z": y + self.get_buffer("table")}


def test_what_is_tied_frozen_shared_unsaved_or_unused_stays_so() -> None:
    model, x = Odd(), torch.randn(4, 3)
    network = rebuilt(lifted(model, x))
    assert list(network.state_dict()) == list(model.state_dict())
    assert [(key, item.requires_grad) for key, item in network.named_parameters()] == [
        (key, item.requires_grad) for key, item in model.named_parameters()
    ]
    torch.testing.assert_close(network(x), model(x))


def test_other_number_types() -> None:
    model, x = build("Residual").to(torch.bfloat16), images().to(torch.bfloat16)
    network = rebuilt(lifted(model, x))
    assert {item.dtype for item in network.parameters()} == {torch.bfloat16}
    assert torch.equal(network(x), model(x))


@pytest.mark.parametrize("name", ["Shuffle", "Depthwise", "Dense"])
def test_the_file_passes_the_usual_checks(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(module_source(lifted(build(name), images(), cut=True)))
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--isolated", "--line-length", "120"]
    subprocess.run([*ruff, "check", *rules, "--select", "E,F,I,W,B,UP,RUF,D1", "--ignore", "D107,D102", "."],
                   cwd=tmp_path, check=True)  # fmt: skip
    subprocess.run([*ruff, "format", *rules, "--check", "--diff", "."], cwd=tmp_path, check=True)


def test_the_snippet_in_the_docstring_works_where_fxprune_is_not(tmp_path: Path) -> None:
    gm = lifted(build("Residual"), images(), cut=True)
    where = save(gm, tmp_path / "out", {"plan.json": "{}"})
    torch.save((images(), gm(images())), where / "pair.pt")
    text = (where / "model.py").read_text()
    snippet = dedent(text.split('"""')[1].split("file:\n")[1])
    script = """
        import sys
        sys.path[:] = [".", *(path for path in sys.path if "main" not in path)]
        sys.modules["fxprune"] = None
        {snippet}
        import torch
        x, wanted = torch.load("pair.pt")
        assert torch.equal(net(x), wanted)
        """
    script = dedent(script).replace("{snippet}", snippet)
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=where, check=True)
