"""The coupling as a drawing: groups as boxes, in layers, and arrows for the tensors that lead from one to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from statistics import fmean

import networkx as nx

from fxprune.report_charts import short_name
from fxprune.types import Coupling, Plan

_HEIGHT, _LAYER, _GAP, _MARGIN = 34, 74, 22, 20  # pixels: of a box, from layer to layer, between boxes, around
_LETTER, _LEAST = 6.6, 90  # pixels: of one letter of a name, of the narrowest box
_LONGEST, _WIDEST = 24, 880  # letters of a name that is shown in full, pixels of a row
_SWEEPS = 4  # down and up again, to take out crossings
_STYLE = """
.coupling { color-scheme: light dark; --ink: #1c2430; --soft: #6b7686; --box: #f4f6fa; --edge: #9fb0c9;
  --bar: #2f6fde }
@media (prefers-color-scheme: dark) {
  .coupling { --ink: #e6eaf0; --soft: #97a3b4; --box: #222a35; --edge: #5a6a82; --bar: #6c9cf5 } }
.coupling text { font: 11px ui-sans-serif, system-ui, sans-serif; fill: var(--ink); text-anchor: middle }
.coupling .width { fill: var(--soft); font-size: 10px } .coupling path { fill: none; stroke: var(--edge) }
.coupling rect { fill: var(--box); stroke: var(--edge); rx: 5px } .coupling .back { stroke-dasharray: 4 3 }
.coupling .kept { fill: var(--bar); stroke: none; rx: 1.5px }
.coupling marker path { fill: var(--edge); stroke: none }
""".strip()


@dataclass(frozen=True)
class _Box:
    """Where a group is: the middle of its upper edge, and how wide its box is. All in pixels."""

    x: float
    y: float
    width: float


def coupling_graph(coupling: Coupling) -> nx.MultiDiGraph:
    """The groups as nodes, with their `width`; an edge with its `param` for each tensor between two."""
    graph = nx.MultiDiGraph()
    made: dict[str, set[str]] = {}
    read: dict[str, set[str]] = {}
    for group in coupling.groups:
        graph.add_node(group.name, width=group.width)
        for axis in group.axes:
            ends = read if coupling.roles[axis] == "consumes" else made
            ends.setdefault(axis.param, set()).add(group.name)
    for param in read:
        for source in sorted(read[param]):
            graph.add_edges_from((source, target, {"param": param}) for target in sorted(made.get(param, ())))
    return graph


def draw(coupling: Coupling, plan: Plan | None = None) -> str:
    """The coupling as the text of an SVG picture, in the colours of the reader's scheme.

    plan: where given, each box also shows how many of its units stay.

    Arrows of residual connections that lead back to an earlier group are dashed.
    """
    graph = coupling_graph(coupling)
    layers = _layers(graph)
    rows = [row for layer in layers for row in _rows(layer)]
    boxes = _boxes(rows)
    kept = None if plan is None else plan.counts
    width = max((box.x + box.width / 2 for box in boxes.values()), default=_LEAST) + _MARGIN + _GAP
    height = max(0, len(rows) - 1) * _LAYER + _HEIGHT + 2 * _MARGIN
    title = f"{len(coupling.groups)} groups of channels"
    body = [*_arrows(graph, boxes), *(_node(name, graph, box, kept) for name, box in boxes.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" class="coupling" aria-labelledby="coupling-title coupling-words">\n'
        f'<title id="coupling-title">{title}</title>\n<desc id="coupling-words">{_described(graph)}</desc>\n'
        f"<style>\n{_STYLE}\n</style>\n"
        '<defs><marker id="coupling-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _described(graph: nx.MultiDiGraph) -> str:
    """The whole picture in words."""
    sentences = []
    for name in graph:
        targets = list(dict.fromkeys(target for target in graph.successors(name) if target != name))
        sentences.append(
            f"{name}, {graph.nodes[name]['width']} units" + (f", to {', '.join(targets)}" if targets else "")
        )
    return escape("; ".join(sentences))


def _layers(graph: nx.MultiDiGraph) -> list[list[str]]:
    """The groups by their longest way from the first, with few crossings; edges to an earlier group are left out."""
    place = {name: index for index, name in enumerate(graph)}
    forward = nx.DiGraph()
    forward.add_nodes_from(graph)
    forward.add_edges_from((one, other) for one, other in graph.edges() if place[one] < place[other])
    layers = [sorted(layer, key=place.__getitem__) for layer in nx.topological_generations(forward)]
    for _ in range(_SWEEPS):
        for order, neighbours in ((layers, forward.predecessors), (layers[::-1], forward.successors)):
            for layer in order:
                _sort(layer, {name: list(neighbours(name)) for name in layer}, layers)
    return layers


def _sort(layer: list[str], neighbours: Mapping[str, list[str]], layers: list[list[str]]) -> None:
    """Sort a layer, in place, by the mean place of the neighbours of its groups, counted from the middle."""
    place = {name: index - len(row) / 2 for row in layers for index, name in enumerate(row)}
    layer.sort(key=lambda name: fmean(map(place.__getitem__, neighbours[name] or [name])))


def _rows(layer: list[str]) -> list[list[str]]:
    """A layer in rows that are equally long and not too wide."""
    count = ceil(sum(_width(name) + _GAP for name in layer) / _WIDEST)
    size = ceil(len(layer) / count)
    return [layer[start : start + size] for start in range(0, len(layer), size)]


def _boxes(rows: list[list[str]]) -> dict[str, _Box]:
    """Where each group goes: rows from top to bottom, each in the middle."""
    lengths = [sum(_width(name) + _GAP for name in row) - _GAP for row in rows]
    boxes = {}
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        left = _MARGIN + (max(lengths) - length) / 2
        for name in row:
            boxes[name] = _Box(left + _width(name) / 2, _MARGIN + number * _LAYER, _width(name))
            left += _width(name) + _GAP
    return boxes


def _width(name: str) -> float:
    return max(_LEAST, _LETTER * len(short_name(name, _LONGEST)) + 20)


def _node(name: str, graph: nx.MultiDiGraph, box: _Box, kept: Mapping[str, int] | None) -> str:
    """The box of a group: its name, its width and, as a number and a bar, what stays of it."""
    width = graph.nodes[name]["width"]
    stays = width if kept is None else kept.get(name, width)
    told = f"{width}" if kept is None else f"{width} \u2192 {stays}"
    left = box.x - box.width / 2
    bar = min(1.0, stays / width) * (box.width - 12)
    drawn = f'<rect class="kept" x="{left + 6:.1f}" y="{box.y + _HEIGHT - 6}" width="{bar:.1f}" height="3"/>'
    return (
        f"<g><title>{escape(name)}: {told} units</title>"
        f'<rect x="{left:.1f}" y="{box.y}" width="{box.width:.1f}" height="{_HEIGHT}"/>'
        f'<text x="{box.x:.1f}" y="{box.y + 13}">{escape(short_name(name, _LONGEST))}</text>'
        f'<text class="width" x="{box.x:.1f}" y="{box.y + 25}">{told}</text>{"" if kept is None else drawn}</g>'
    )


def _arrows(graph: nx.MultiDiGraph, boxes: Mapping[str, _Box]) -> list[str]:
    """One arrow for each pair of groups, with the tensors behind it."""
    params: dict[tuple[str, str], list[str]] = {}
    for source, target, param in graph.edges(data="param"):
        params.setdefault((source, target), []).append(param)
    return [
        f"<g><title>{escape(', '.join(names))}</title>{_path(boxes[source], boxes[target], boxes.values())}</g>"
        for (source, target), names in params.items()
    ]


def _path(source: _Box, target: _Box, boxes: Iterable[_Box]) -> str:
    """A curve to a neighbouring row, or through a lane beside the boxes between; dashed on the way back up."""
    down = target.y > source.y
    side, step = (-1, 1) if down else (1, -1)
    between = [box for box in boxes if min(source.y, target.y) < box.y < max(source.y, target.y)]
    aside = 0 if down and not between else side / 3  # of the width of a box
    x, end = source.x + aside * source.width, target.x + aside * target.width
    y, stop = source.y + (_HEIGHT if down else 0), target.y + (0 if down else _HEIGHT)
    if source is target:
        right, middle = source.x + source.width / 2, source.y + _HEIGHT / 2
        out = right + 18
        way = f"M{right:.1f} {middle - 8}C{out:.1f} {middle - 14} {out:.1f} {middle + 14} {right:.1f} {middle + 8}"
    elif between:
        lane = _lane(end, between, side)
        way = (
            f"M{x:.1f} {y}C{x:.1f} {y + 24 * step} {lane:.1f} {y + 8 * step} {lane:.1f} {y + 26 * step}"
            f"V{stop - 26 * step}C{lane:.1f} {stop - 8 * step} {end:.1f} {stop - 24 * step} {end:.1f} {stop}"
        )
    else:
        middle = (y + stop) / 2
        way = f"M{x:.1f} {y}C{x:.1f} {middle} {end:.1f} {middle} {end:.1f} {stop}"
    return f'<path class="{"way" if down else "back"}" marker-end="url(#coupling-tip)" d="{way}"/>'


def _lane(x: float, boxes: Sequence[_Box], side: int) -> float:
    """Where a vertical line next to x passes all boxes; those down and those up keep to different sides of them."""
    lanes = [box.x + side * (box.width / 2 + _GAP / 3) for box in boxes]
    free = (lane for lane in (x, *lanes) if all(abs(lane - box.x) > box.width / 2 for box in boxes))
    return min(free, key=lambda lane: abs(lane - x))
