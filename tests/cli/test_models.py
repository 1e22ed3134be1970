"""SPEC: every form, and the message for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.cli.models import resolve
from fxprune.cli.preprocessing import Preprocessing
from fxprune.errors import SpecError


def test_torchvision_comes_with_its_preprocessing() -> None:
    network = resolve("torchvision:mobilenet_v3_small")
    assert isinstance(network.model, nn.Module)
    assert not network.model.training
    assert network.random
    assert network.input_size == (3, 224, 224)
    assert network.preprocessing == Preprocessing(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=(224, 224), resize=256
    )


def test_timm_comes_with_its_preprocessing() -> None:
    network = resolve("timm:test_resnet")
    assert network.random
    assert network.input_size == (3, 160, 160)
    assert network.preprocessing is not None
    assert network.preprocessing.size == (160, 160)
    assert network.preprocessing.resize == int(160 / 0.95)


def test_random_weights_are_those_of_the_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        model = resolve("torchvision:squeezenet1_1", seed=seed).model
        assert isinstance(model, nn.Module)
        return next(model.parameters())

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("name", ["tiny", "Tiny", "ready"])
def test_a_factory_a_class_or_a_module_of_a_file(networks: Path, name: str) -> None:
    network = resolve(f"{networks}:{name}")
    assert type(network.model).__name__ == "Tiny"
    assert not network.random
    assert network.preprocessing is None


def test_a_file_inside_a_package(tmp_path: Path) -> None:
    package = tmp_path / "outer_package" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "__init__.py").write_text("")
    (package.parent / "sizes.py").write_text("WIDTH = 5\n")
    (package / "net.py").write_text(
        "from torch import nn\nfrom ..sizes import WIDTH\n\ndef build():\n    return nn.Linear(WIDTH, 1)\n"
    )
    model = resolve(f"{package / 'net.py'}:build").model
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5


def test_an_exported_program(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(3, 2)), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "p.pt2")
    assert isinstance(resolve(str(tmp_path / "p.pt2")).model, ExportedProgram)
    with pytest.raises(SpecError, match="brings its own weights: leave --weights out"):
        resolve(str(tmp_path / "p.pt2"), tmp_path / "w.pth")


def test_a_file_with_weights(networks: Path, tmp_path: Path) -> None:
    source = resolve(f"{networks}:tiny").model
    assert isinstance(source, nn.Module)
    state = {key: value + 1 for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    model = resolve(f"{networks}:tiny", tmp_path / "w.pth").model
    assert isinstance(model, nn.Module)
    assert torch.equal(model.state_dict()["classifier.weight"], state["classifier.weight"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "'resnet18' names no network: give torchvision:NAME, timm:NAME"),
        ("torchvision:resnet19", "torchvision has no model named 'resnet19': did you mean resnet1"),
        ("timm:resnet19", "timm has no model named 'resnet19': did you mean "),
        ("torchvision:", "torchvision has no model named ''"),
        ("nowhere.py:tiny", "nowhere.py: no such file"),
        ("nowhere.pt2", "nowhere.pt2: no such file"),
    ],
)
def test_a_spec_that_names_nothing(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(spec)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "has no `absent`; it has .*tiny"),
        ("broken", r"broken without arguments failed at .*networks\.py:\d+: RuntimeError: out of order"),
        ("number", "returned a int: an nn.Module is needed"),
        ("settings", "is a module: a function that returns an nn.Module is needed"),
    ],
)
def test_a_file_that_gives_no_network(networks: Path, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve(f"{networks}:{name}")


def test_a_file_that_fails_to_run(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text("import torch\n1 / 0\n")
    with pytest.raises(SpecError, match=r"running .*faulty\.py failed at .*faulty\.py:2: ZeroDivisionError"):
        resolve(f"{tmp_path / 'faulty.py'}:build")


def test_a_damaged_program(tmp_path: Path) -> None:
    (tmp_path / "p.pt2").write_bytes(b"nothing")
    with pytest.raises(SpecError, match=r"p\.pt2 cannot be read as an exported program"):
        resolve(str(tmp_path / "p.pt2"))
