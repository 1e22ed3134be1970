"""SPEC: the network that a command works on."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.export import ExportedProgram

from fxprune.cli.preprocessing import Preprocessing, of_timm, of_torchvision
from fxprune.cli.python_file import call_factory, is_python_spec, load_object
from fxprune.cli.weights import load_weights
from fxprune.errors import SpecError

FORMS = "torchvision:NAME, timm:NAME, path/to/file.py:factory or path/to/program.pt2"


@dataclass(frozen=True)
class Network:
    """A resolved SPEC.

    model: a module in evaluation mode, or an exported program.
    preprocessing: what published weights of this architecture expect of images; None where nobody says.
    input_size: shape of one input; None where nobody says.
    random: whether the weights are those of the initialisation.
    """

    model: nn.Module | ExportedProgram
    preprocessing: Preprocessing | None = None
    input_size: tuple[int, ...] | None = None
    random: bool = False


def resolve(spec: str, weights: Path | None = None, seed: int = 0) -> Network:
    """The network that `spec` names, with the weights from a file if given. Raises SpecError and WeightsError."""
    torch.manual_seed(seed)
    network = _resolve(spec)
    if weights is None:
        return network
    if not isinstance(network.model, nn.Module):
        raise SpecError(f"{spec} is an exported program, which brings its own weights: leave --weights out")
    load_weights(network.model, weights)
    return replace(network, random=False)


def _resolve(spec: str) -> Network:
    registry, _, name = spec.partition(":")
    if registry == "torchvision":
        return _torchvision(name)
    if registry == "timm":
        return _timm(name)
    if is_python_spec(spec):
        return _python(spec)
    if spec.endswith(".pt2"):
        return _program(Path(spec))
    raise SpecError(f"{spec!r} names no network: give {FORMS}")


def _torchvision(name: str) -> Network:
    known = torchvision.models.list_models()
    if name not in known:
        raise SpecError(_unknown("torchvision", name, known))
    published = list(torchvision.models.get_model_weights(name))
    preset = published[-1].transforms() if published else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the default initialisation of GoogLeNet and Inception
        model = torchvision.models.get_model(name, weights=None)
    preprocessing = of_torchvision(preset)
    side = (preprocessing and preprocessing.size) or (224, 224)
    return Network(model.eval(), preprocessing, (3, *side), random=True)


def _timm(name: str) -> Network:
    try:
        import timm
        from timm.data import resolve_data_config
    except ImportError as error:
        raise SpecError(f"timm:{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        raise SpecError(_unknown("timm", name, timm.list_models()))
    model = timm.create_model(name, pretrained=False)
    config = resolve_data_config(model=model)
    return Network(model.eval(), of_timm(config), tuple(config["input_size"]), random=True)


def _python(spec: str) -> Network:
    model = load_object(spec)
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise SpecError(f"{spec} is a {type(model).__name__}: a function that returns an nn.Module is needed")
        model = call_factory(model, spec)
    if not isinstance(model, nn.Module | ExportedProgram):
        raise SpecError(f"{spec} returned a {type(model).__name__}: an nn.Module is needed")
    return Network(model.eval() if isinstance(model, nn.Module) else model)


def _program(path: Path) -> Network:
    if not path.is_file():
        raise SpecError(f"{path}: no such file")
    try:
        return Network(torch.export.load(path))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise SpecError(f"{path} cannot be read as an exported program: {type(error).__name__}: {reason}") from error


def _unknown(registry: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f": did you mean {', '.join(near)}?" if near else ""
    return f"{registry} has no model named {name!r}{hint}"
