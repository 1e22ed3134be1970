"""What the zoo measures of one network: how it is captured, what can shrink and what not, and how exact that is."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

import fxprune as fp
from benchmarks.models import Network, build
from benchmarks.oracle import TOLERANCE, Local, random_plan, whole
from fxprune.capture import capture_info

LARGE = 10_000_000  # parameters above which a network is checked by fewer plans
Findings = dict[str, Any]


def examine(spec: str, seeds: int, seconds: float) -> Iterator[Findings]:
    """Findings about a network, stage by stage, so that what is known survives when a later stage is cut off.

    seeds: of balanced and unbalanced plans for all groups at once; one where the network is large.
    seconds: after which no further plan is checked at each call; groups come in a random order. A large network is
        neither pruned by whole heads nor traced symbolically, which is said in the page's text.
    """
    yield {"stage": "building"}
    network = build(spec)
    yield {"stage": "capture", "size": network.example.shape[-1]}
    started = time.perf_counter()
    gm = fp.capture(network.model, (network.example,))
    yield {"stage": "analysis", "capture_seconds": time.perf_counter() - started, "notes": capture_info(gm).notes}
    started = time.process_time()  # others may be using the machine
    coupling = fp.analyze(gm)
    yield {"analysis_seconds": time.process_time() - started, **_described(network, coupling)}
    large = sum(parameter.numel() for parameter in network.model.parameters()) > LARGE
    if coupling.groups:
        yield from _at_each_call(gm, coupling, 1 if large else seeds, seconds)
        yield from _all_at_once(gm, coupling, by_heads=not large)
    if not large:
        yield {"stage": "symbolic_trace"}
        yield {"symbolic_trace": _symbolic_trace(network, coupling)}
    yield {"stage": "done"}


def _described(network: Network, coupling: fp.Coupling) -> Findings:
    parameters = dict(network.model.named_parameters())
    shrinking = {axis.param for group in coupling.groups for axis in group.axes}
    count = sum(parameter.numel() for parameter in parameters.values())
    can = sum(parameter.numel() for name, parameter in parameters.items() if name in shrinking)
    return {
        "params": count,
        "groups": len(coupling.groups),
        "share": can / max(count, 1),
        "held": dict(Counter(map(_cause, coupling.held.values())).most_common()),
        "reasons": list(dict.fromkeys(coupling.held.values()))[:40],
        "outputs": sorted({axis.param for axis in coupling.held if axis.dim == 0 and _makes_output(coupling, axis)}),
    }


def _makes_output(coupling: fp.Coupling, axis: fp.Axis) -> bool:
    return "output of the network" in coupling.held[axis]


def _cause(reason: str) -> str:
    """The class of a reason: what it says before it names a node."""
    text = re.split(r"`|:", reason)[0].strip()
    return re.sub(r"( (in|by|of|for|from|to|the result of))+$", "", text) or "other"


def _all_at_once(gm: fx.GraphModule, coupling: fp.Coupling, by_heads: bool) -> Iterator[Findings]:
    """An unbalanced plan for all groups, shrunk and verified; one with whole heads where that makes other groups."""
    yield {"stage": "all groups at once"}
    yield {"whole_error": _finite(whole(gm, random_plan(coupling, 0, balanced=False)))}
    if not by_heads:
        return
    yield {"stage": "whole heads"}
    heads = fp.analyze(gm, heads=True)
    if str(heads) != str(coupling):
        error = _finite(whole(gm, random_plan(heads, 0, balanced=False, heads=True)))
        yield {"heads_error": error, "heads_groups": len(heads.groups)}


def _at_each_call(gm: fx.GraphModule, coupling: fp.Coupling, seeds: int, seconds: float) -> Iterator[Findings]:
    """Plans for all groups and for every group by itself, checked at each call that they touch."""
    yield {"stage": "local oracle"}
    local = Local(gm)
    worst, where = 0.0, ""
    names = [group.name for group in coupling.groups]
    random.Random(0).shuffle(names)
    plans: list[tuple[str, str | None, int, bool]]
    plans = [(f"all groups, seed {seed}", None, seed, balanced) for seed in range(seeds) for balanced in (True, False)]
    plans += [(f"group {name}", name, seed, False) for seed, name in enumerate(names)]
    started = time.perf_counter()
    for count, (title, name, seed, balanced) in enumerate(plans, 1):
        yield {"stage": title}
        found = local.check(random_plan(coupling, seed, balanced=balanced, only=name))
        if not found.error <= worst:
            worst, where = _finite(found.error), f"{title} at {found.node}"
        yield {"single_error": worst, "single_checked": max(0, count - 2 * seeds)}
        if worst > TOLERANCE:
            yield {"single_worst": where}
        if time.perf_counter() - started > seconds:
            break


def _finite(error: float) -> float:
    """JSON knows no infinity."""
    return error if error < 1e300 else 1e300


def _symbolic_trace(network: Network, coupling: fp.Coupling) -> str:
    """Whether torch.fx.symbolic_trace leads to the same groups: "same", "other groups", or "" where it fails."""
    try:
        traced = fx.symbolic_trace(network.model)
        with torch.no_grad():
            traced(network.example)
    except Exception:  # noqa: BLE001 (most networks with control flow cannot be traced symbolically)
        return ""
    found = fp.analyze(fp.capture(traced, (network.example,)))
    same = sorted(group.width for group in found.groups) == sorted(group.width for group in coupling.groups)
    return "same" if same else f"other groups: {len(found.groups)}"
