"""Networks that are drawn at random: a stem, some steps, a head."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks import (  # noqa: F401 (their steps register on import)
    steps_of_layers,
    steps_of_moves,
    steps_of_tokens,
    steps_of_values,
)
from tests.networks.examples import images
from tests.networks.helpers import randomized, scattered
from tests.networks.partition import Partition
from tests.networks.steps import OPTIONS, STEPS, Step, conv
from tests.networks.steps_of_tokens import PIXELS

Choice = tuple[str, int]
STEM, MOST = 8, 16  # channels at first, and the most that a step is given

CHOICES: st.SearchStrategy[Choice] = st.sampled_from(
    [(name, option) for name, options in OPTIONS.items() for option in range(len(options))]
)


class Drawn(nn.Module):
    """A network of drawn steps; where channels have become too many, a convolution makes eight of them."""

    def __init__(self, choices: list[Choice]) -> None:
        super().__init__()
        self.stem, self.steps = conv(3, STEM), nn.ModuleList()
        width = STEM
        for name, option in choices:
            if width > MOST:
                width = self._append("Conv", 1, width)
            width = self._append(name, option, width)
        self.head = nn.Linear(width, 3)

    def _append(self, name: str, option: int, width: int) -> int:
        made: Step = STEPS[name](width, OPTIONS[name][option])
        made.name = f"steps.{len(self.steps)}"
        self.steps.append(made)
        return made.width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for made in self.steps:
            x = made(x)
        return self.head(x.mean((2, 3)))

    def partition(self) -> Partition:
        """The coupling as its steps say it."""
        found, zero = Partition(), True
        x = found.make("stem.weight", found.fresh(STEM))
        for made in self.steps:
            assert isinstance(made, Step)
            x = made.couple(found, x, zero)
            zero = zero if made.zero is None else made.zero
            found.tensors.append(x)
        found.lie("head.weight", x, 1)
        found.settle()
        return found


def drawn(choices: list[Choice], seed: int) -> tuple[Drawn, tuple[Tensor, ...]]:
    """The network with weights that hide no mistake, and its inputs."""
    torch.manual_seed(seed)
    network = Drawn(choices)
    scattered(randomized(network)).eval()
    return network, (images(2, PIXELS),)
