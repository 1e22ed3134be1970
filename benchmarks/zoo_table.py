"""docs/zoo.md from the findings of the zoo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from benchmarks.oracle import TOLERANCE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"
Findings = dict[str, Any]

HEADER = (
    "| network | pixels | parameters | front end | groups | can shrink | held axes | analysis | largest error "
    "| verdict | Torch-Pruning | can shrink |\n" + "|" + "---|" * 12
)
NOT_CHANNELS = ("kernel extent",)  # of every convolution: said once above the table
TITLE = """# The zoo

`python -m benchmarks.zoo --write` wrote this page (`make zoo`), with torch {torch}, torchvision {torchvision} and
timm {timm}.

Every network has random weights, random BatchNorm statistics and affines, and the smallest images that it accepts.
The **networks** are all classification, segmentation and video models of torchvision, the backbones of its
detectors, and of each family of timm the variant with the fewest parameters; `benchmarks/models.py` has the rule.

The **oracle** works in float64. Removing units must equal setting their slices to zero in the original, with the
statistics of normalisations over channels taken over those that stay. Checked are plans for all groups at once,
balanced (half of each group) and unbalanced (any number from a quarter to all but one), from three seeds; every
group by itself; and, where `heads=True` makes other groups, whole heads. Above ten million parameters it is one
seed, without whole heads and without `symbolic_trace`; a verdict says where time did not suffice for every group by
itself. The largest error is relative to the largest magnitude of the value in question, over all of these; *exact*
is up to {tolerance:.0e}.

**Front end**: `export` is an `nn.Module`, captured; `fx` says that the same groups are found behind
`torch.fx.symbolic_trace`, where that can trace the network. **Can shrink** is the share of the parameters that lie
on at least one axis of a group. **Held axes** are counted by cause, without the extents of kernels. **Analysis** is
the processor time of `fxprune.analyze` in seconds, capture excluded.

**Torch-Pruning** 1.6.1 prunes half of each of its groups at random, on the same networks, images and numbers, and
is judged by the same oracle: what it removed is set to zero in the original. Its output layers are ignored, heads
are declared, and attributes corrected as in its examples. *Timeout*: so much processor time did not suffice for its
graph and pruning. *Crash*: it raised; *forward fails*: the pruned network does. Its *can shrink* is the share of the
parameters that got smaller.
"""


def write(results: list[Findings]) -> None:
    """Write the page: what it is, the totals, a row for each network."""
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    lines = [TITLE.format(**versions, tolerance=TOLERANCE), *_totals(results), "", HEADER, *map(_row, results)]
    draft = PAGE.with_suffix(".tmp")
    draft.write_text("\n".join(lines) + "\n")
    draft.replace(PAGE)


def verdict(found: Findings) -> str:
    """What became of a network under fxprune: "exact", "WRONG", or the reason why not."""
    ours = found.get("ours", {})
    if not ours:
        return "not run"
    worst = largest_error(ours)
    if worst > TOLERANCE:
        return f"**WRONG**: {ours.get('single_worst', 'all groups at once')}"
    if "failure" in ours:
        return f"{_shortened(ours['failure'])} ({ours['stage']})"
    if not ours.get("groups"):
        return "nothing can shrink"
    checked = ours.get("single_checked", 0)
    return "exact" if checked == ours["groups"] else f"exact ({checked} groups one by one)"


def largest_error(ours: Findings) -> float:
    """Over all plans."""
    return max(float(ours.get(name, 0.0)) for name in ("whole_error", "single_error", "heads_error"))


def _totals(results: list[Findings]) -> list[str]:
    run = [found for found in results if found.get("ours")]
    exact = [found for found in run if verdict(found).startswith("exact")]
    wrong = [found for found in run if "WRONG" in verdict(found)]
    both = [found for found in run if found.get("peer")]
    peers = Counter(_peer(found) for found in both)
    smaller = [f for f in both if _share(f, "peer") > _share(f, "ours") + 0.005 and _peer(f) == "exact"]
    times = sorted((found["ours"].get("analysis_seconds", 0.0), found["spec"]) for found in run)
    named = ", ".join(f"{count} {name}" for name, count in peers.most_common() if name != "exact")
    return [
        f"**{len(results)} networks are on the list, {len(run)} were run: {len(exact)} exact, {len(wrong)} wrong, "
        f"{len(run) - len(exact) - len(wrong)} with a reason. On {len(both)} of them Torch-Pruning was run as well: "
        f"{peers['exact']} exact{', ' + named if named else ''}; "
        f"fxprune {sum(found in exact for found in both)} exact.**",
        "",
        f"The slowest analysis takes {times[-1][0]:.1f} s ({times[-1][1]}), "
        f"the median {times[len(times) // 2][0]:.2f} s. "
        f"Torch-Pruning is exact and shrinks a larger share of the parameters on {len(smaller)} networks"
        + (f": {', '.join(found['spec'].partition(':')[2] for found in smaller)}." if smaller else "."),
    ]


def _row(found: Findings) -> str:
    ours, peer = found.get("ours", {}), found.get("peer", {})
    traced = {"same": "export, fx", "": "export"}.get(ours.get("symbolic_trace", ""), "export, fx differs")
    checked = "single_error" in ours or "whole_error" in ours
    cells = [
        found["spec"].removeprefix("torchvision/classification:").replace("torchvision/", ""),
        ours.get("size", ""),
        f"{found['params'] / 1e6:.1f} M",
        traced if "groups" in ours else "",
        ours.get("groups", ""),
        f"{100 * ours['share']:.0f} %" if "share" in ours else "",
        _held(ours),
        f"{ours['analysis_seconds']:.2f}" if "analysis_seconds" in ours else "",
        f"{largest_error(ours):.0e}" if checked else "",
        verdict(found),
        _peer(found),
        f"{100 * peer['share']:.0f} %" if "share" in peer else "",
    ]
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _held(ours: Findings) -> str:
    causes = [(cause, count) for cause, count in ours.get("held", {}).items() if cause not in NOT_CHANNELS]
    return ", ".join(f"{count} {cause}" for cause, count in causes)


def _peer(found: Findings) -> str:
    peer = found.get("peer", {})
    if not peer:
        return "not run"
    return str(peer.get("verdict") or _shortened(peer.get("failure", "")))


def _share(found: Findings, whose: str) -> float:
    return float(found.get(whose, {}).get("share", 0.0))


def _shortened(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first if len(first) < 120 else f"{first[:117]}..."
