"""The model.py of every classifier of torchvision: tidy text that needs only torch, and a network that lives."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import fxprune as fp
from benchmarks.models import build

FAST = ("shufflenet_v2_x0_5", "squeezenet1_1")
COMPILED = ("shufflenet_v2_x0_5", "squeezenet1_1")
CLASSIFIERS = torchvision.models.list_models(torchvision.models)
STANDARD = {"dataclasses", "math", "operator", "pathlib", "typing"}
RULES = "E,F,I,W,B,UP,RUF,D1"

# Runs in the folder of a result, where neither fxprune nor torchvision can be imported.
OPENING = """
import sys
sys.modules.update(fxprune=None, torchvision=None)
import model, torch
from safetensors.torch import load_file
x, wanted = torch.load("pair.pt")
"""
LIVES = """
import json, warnings
from torch import nn
network = [item for item in vars(model).values() if isinstance(item, type) and item.__module__ == "model"][-1]()
network.load_state_dict(load_file("model.safetensors"), strict=True)
torch.testing.assert_close(network.eval()(x), wanted)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.export warns about its own internals
    program = torch.export.export(network, (x,))
torch.testing.assert_close(program.module()(x), wanted)

optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3)
before = [item.clone() for item in network.parameters()]
network(x).square().mean().backward()
optimizer.step()
still = [name for (name, item), old in zip(network.named_parameters(), before) if item.grad is None]
moved = sum(not torch.equal(item, old) for item, old in zip(network.parameters(), before))
told = {"class": type(network).__name__, "still": still, "moved": moved, "parameters": len(before)}
told["finite"] = all(bool(item.isfinite().all()) for item in network.parameters())
told["modules"] = [name for name, _ in network.named_modules()]
json.dump(told, open("told.json", "w"))
"""
COMPILES = """
network = [item for item in vars(model).values() if isinstance(item, type) and item.__module__ == "model"][-1]()
network.load_state_dict(load_file("model.safetensors"), strict=True)
compiled = torch.compile(network.eval(), fullgraph=True)
torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-4)
"""


def saved(name: str, folder: Path) -> nn.Module:
    """The classifier; its pruned result is in the folder, with an example and what the result makes of it."""
    network = build(f"torchvision/classification:{name}")
    budget = fp.Budget(flops=0.8)
    result = fp.prune(network.model, network.example, budget=budget, recipe="magnitude", verify=False)
    result.save(folder)
    with torch.no_grad():
        torch.save((network.example, result.model(network.example)), folder / "pair.pt")
    return network.model


def alone(folder: Path, script: str) -> None:
    """Run a script in the folder, in a process of its own; any warning is an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CLASSIFIERS]
)
def test_a_classifier_lives_by_its_file_alone(name: str, tmp_path: Path) -> None:
    original = saved(name, tmp_path)
    check_text((tmp_path / "model.py").read_text(), tmp_path)
    alone(tmp_path, OPENING + LIVES)
    told: dict[str, Any] = json.loads((tmp_path / "told.json").read_text())
    assert told["class"] == type(original).__name__
    assert told["finite"] and not told["still"] and told["moved"] > told["parameters"] / 2
    assert set(told["modules"]) <= {path for path, _ in original.named_modules()}
    assert {path for path, module in original.named_modules() if module._parameters} <= set(told["modules"])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_classifier_compiles(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    alone(tmp_path, OPENING + COMPILES)


def check_text(text: str, folder: Path) -> None:
    """It imports only torch, is typed throughout, and linters and formatters leave it alone."""
    tree = ast.parse(text)
    assert imported(tree) - STANDARD == {"torch"}
    assert not list(untyped(tree))
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--isolated", "--line-length", "120", "model.py"]
    select = ["--select", RULES, "--ignore", "D107,D102"]
    for command in (["check", *select, *options], ["format", "--check", "--diff", *options]):
        done = subprocess.run([*ruff, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def imported(tree: ast.Module) -> set[str]:
    """The top-level packages that are imported anywhere in the text."""
    names = [item.name for node in ast.walk(tree) if isinstance(node, ast.Import) for item in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def untyped(tree: ast.Module) -> Iterator[str]:
    """The functions that do not say what they take and give."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            bare = [item for item in arguments if item and item.arg != "self" and item.annotation is None]
            if bare or node.returns is None:
                yield node.name


@pytest.mark.parametrize("function", ["def f(x) -> int: ...", "def f(x: int): ...", "def f(*x) -> int: ..."])
def test_an_untyped_function_is_found(function: str) -> None:
    assert list(untyped(ast.parse(function))) == ["f"]
    assert not list(untyped(ast.parse("def f(self, x: int, *y: int, **z: int) -> int: ...")))


def test_imports_are_found_wherever_they_are() -> None:
    assert imported(ast.parse("import torch.nn as nn\ndef f():\n    from timm.layers import x")) == {"torch", "timm"}
