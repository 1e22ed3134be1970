"""What is known of a captured graph besides the graph itself."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen

from fxprune.errors import CaptureError

META = "fxprune"  # the key in GraphModule.meta under which fxprune keeps what its stages hand on


class HandedOn(dict[str, Any]):
    """What stages hand on with a graph: the dense network, images and costs among it. It stays out of pickles."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return dict, ()

    def __copy__(self) -> HandedOn:
        return HandedOn(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> HandedOn:
        return HandedOn(self)


@dataclass(frozen=True)
class Capture:
    """What is known of a captured graph besides the graph itself.

    args, kwargs: the example inputs that it was captured with.
    dynamic_batch: whether dimension 0 of the inputs may change.
    names: names of parameters and buffers in the order of the original's state_dict.
    notes: what the capture had to give up, in words, for the report.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic_batch: bool
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


_captured: weakref.WeakKeyDictionary[nn.Module, fx.GraphModule] = weakref.WeakKeyDictionary()


def remember(model: nn.Module, gm: fx.GraphModule) -> None:
    """Keep `gm` as the last capture of `model`, while both live."""
    _captured[model] = gm


def last_capture(model: nn.Module) -> fx.GraphModule | None:
    """The graph that `model` was last captured to in this process, while both live."""
    return _captured.get(model)


def capture_info(gm: fx.GraphModule) -> Capture:
    """What `capture` noted on `gm`. Raises CaptureError when `gm` did not come from `capture`."""
    info = getattr(gm, "meta", {}).get(META, {}).get("capture")
    if not isinstance(info, Capture):
        raise CaptureError(
            f"this {type(gm).__name__} was not made by fxprune.capture: call fxprune.capture(model, inputs) first"
        )
    return info


def is_captured(gm: fx.GraphModule) -> bool:
    """Whether this is an ATen graph that `capture` made; one that has been lifted since is a module like any other."""
    return "capture" in gm.meta.get(META, {}) and isinstance(gm.graph._codegen, _PyTreeCodeGen)
