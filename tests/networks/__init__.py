"""Small networks, one for each mechanism, and what the oracle needs of them.

NETWORKS: classifiers of images, which every stage of the pipeline is tested on.
EXAMPLES: all the other mechanisms, with their own inputs, and the groups that theory gives them.
"""

from __future__ import annotations

from tests.networks import (  # noqa: F401 (their examples register on import)
    attention,
    contractions,
    forwards,
    moves,
    normalisations,
    products,
    recurrent,
    transformers,
    unet,
)
from tests.networks.classifiers import NETWORKS, Plain, conv_norm
from tests.networks.examples import EXAMPLES, Example, images
from tests.networks.helpers import Calls, build, calls, captured, inputs, modified, random_plan, randomized

__all__ = [
    "EXAMPLES",
    "NETWORKS",
    "Calls",
    "Example",
    "Plain",
    "build",
    "calls",
    "captured",
    "conv_norm",
    "images",
    "inputs",
    "modified",
    "random_plan",
    "randomized",
]
