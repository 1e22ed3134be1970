"""Every pass of the package, with small networks in the state that it needs."""

from __future__ import annotations

import copy
import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.passes.infra.pass_base import PassBase
from torch.nn import functional as F

import fxprune as fp
from fxprune.passes.base import clone, state
from fxprune.passes.configure import Configure
from fxprune.passes.initialise import Initialise
from fxprune.passes.recalibrate import Recalibrate
from fxprune.passes.reconstruct import Reconstruct
from fxprune.passes.refine import Refine
from fxprune.passes.squeeze import Squeeze
from fxprune.passes.synthesise import Synthesise
from fxprune.precrop import passes_of
from tests.networks import build
from tests.networks.helpers import randomized

HALF = fp.Budget(params=0.6)
IMAGES = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)  # of any number and size


def images(batch: int = 2, height: int = 8, width: int = 10) -> Tensor:
    """Inputs of the networks here, the same every time."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


DATA = images(96)


class Branches(nn.Module):
    """Has something for each pass: chunks and a mean to pin, a dropout of nothing to tidy, a layer that stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.second, self.drop, self.head = nn.Conv2d(6, 8, 1), nn.Dropout(0.0), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.norm(self.first(x))).chunk(2, dim=1)
        y = self.drop(F.relu(self.second(left * right.mean(1, keepdim=True))))
        return self.head(y.mean((2, 3)))


def settled(model: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics of the data, in evaluation mode."""
    with torch.no_grad():
        for _ in range(30):
            model.train()(DATA)
    return model.eval()


MODELS = {
    "Residual": lambda: settled(build("Residual")),
    "Branches": lambda: settled(randomized(Branches())),
}


def every_pass() -> list[type[PassBase]]:
    """The passes that docs/generate.py finds."""
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).parents[2] / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [kind for _, kind in module.passes()]


ALONE = (Configure, Initialise, Synthesise, Recalibrate)  # whose pipeline is not that of the others


def pipeline_with(kind: type[PassBase]) -> list[PassBase]:
    """A pipeline in which the pass occurs, the passes that learn having little to do."""
    if kind in (Configure, Initialise):
        return [*passes_of(Configure(HALF), reinitialise=True)]
    if kind is Synthesise:
        return [Synthesise(images=32)]
    # mixtures of images of noise are unlike those it is judged by
    short: dict[type[PassBase], PassBase] = {Squeeze: Squeeze(epochs=16, augment=False), Refine: Refine(epochs=16)}
    steps = [short.get(type(step), step) for step in fp.pipeline("psp", budget=HALF, calibration=DATA)]
    # least squares leaves nothing to gain from new statistics
    return [step for step in steps if kind is not Recalibrate or type(step) not in (Squeeze, Reconstruct)]


@cache
def before_each(name: str, kind: type[PassBase]) -> dict[type[PassBase], tuple[nn.Module, fx.GraphModule]]:
    """A network and its graph before each pass of the pipeline that is made for `kind`."""
    torch.manual_seed(0)
    model = MODELS[name]()
    gm = clone(fp.capture(model, images(), dynamic_shapes=IMAGES))
    found: dict[type[PassBase], tuple[nn.Module, fx.GraphModule]] = {}
    for step in pipeline_with(kind):
        found.setdefault(type(step), copied(model, gm))
        step(gm)
    return found


def shared(kind: type[PassBase], name: str) -> tuple[nn.Module, fx.GraphModule, PassBase]:
    """As `prepared`, with the model that the graph shares its tensors with: the same ones in every test."""
    found = before_each(name, kind if kind in ALONE else Refine)
    assert kind in found, f"no pipeline has {kind.__name__}: add one to pipeline_with"
    model, gm = found[kind]
    return model, gm, ordered(kind)


def prepared(kind: type[PassBase], name: str) -> tuple[fx.GraphModule, PassBase]:
    """A graph to which all that comes before the pass has been done, and the pass."""
    model, gm, step = shared(kind, name)
    return copied(model, gm)[1], step


def copied(model: nn.Module, gm: fx.GraphModule) -> tuple[nn.Module, fx.GraphModule]:
    """Copies that share their tensors with each other, as a model and its graph do, and what was handed on."""
    twins = copy.deepcopy((model, gm))
    twins[1].meta = {**gm.meta, "fxprune": dict(state(gm))}
    return twins


def ordered(kind: type[PassBase]) -> PassBase:
    """The pass as its pipeline has it."""
    return next(step for step in pipeline_with(kind) if type(step) is kind)


PASSES = every_pass()
