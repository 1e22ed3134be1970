"""How many images a pass through a network may take at once, so that memory does not grow with their size."""

from __future__ import annotations

import math

from torch import Tensor, fx

from fxprune.calls import concrete_shape

PASS = 2 << 30  # bytes


def images_at_once(gm: fx.GraphModule, memory: int = PASS) -> int:
    """Images of which all values together take at most `memory` bytes, as if none were freed; at least 1."""
    return max(1, memory // max(1, bytes_per_image(gm)))


def bytes_per_image(gm: fx.GraphModule) -> int:
    """Bytes of all values of one image, from the shapes that the graph records for the images of the example."""
    total = 0
    samples = (concrete_shape(node) for node in gm.graph.nodes if node.op == "placeholder")
    images = next((shape[0] for shape in samples if shape), 1)
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            total += math.prod(concrete_shape(node)) * value.element_size()
    return total // images
