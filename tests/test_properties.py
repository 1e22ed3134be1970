"""Random small networks: whatever the analysis lets go must go exactly, and all that could go must be let go."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from torch import fx

import fxprune as fp
from fxprune.passes.base import clone
from fxprune.passes.pin_sizes import PinSizes
from fxprune.passes.shrink import Shrink
from tests.networks import modified, random_plan
from tests.networks.drawn import CHOICES, Choice, drawn
from tests.networks.oracles import exact, two_in_a_row_are_one
from tests.networks.partition import PERMANENT, Partition
from tests.networks.steps import BY_GROUP

PARTS = 8  # tests that share the work, so that processes can
EXAMPLES = int(os.environ.get("FXPRUNE_EXAMPLES", "120"))  # networks that are drawn in all


def check(choices: list[Choice], number: int) -> None:
    """All that is promised, on one network."""
    network, inputs = drawn(choices, number)
    gm = fp.capture(network, inputs)
    coupling = fp.analyze(gm)
    coupled_as_by_hand(network.partition(), coupling)
    plan = random_plan(coupling, number, least=2)
    assert fp.Plan.from_json(plan.to_json()) == plan
    small = exact(gm, plan)
    predicted = fp.cost(gm, coupling).evaluate(plan.counts)
    assert predicted["params"] == sum(parameter.numel() for parameter in small.parameters())
    if number % 4 == 0:  # the dearest checks, on every fourth network
        once_is_enough(small, plan)
        two_in_a_row_are_one(gm, small, plan, number)


def coupled_as_by_hand(found: Partition, coupling: fp.Coupling) -> None:
    """The units and groups are those that the steps say, where these can say it."""
    groups = found.groups()
    if groups is None:
        return
    theirs: dict[int, int] = {}
    ours: dict[int, int] = {PERMANENT: 0}
    for (param, dim), labels in found.axes.items():
        if dim == BY_GROUP:
            continue
        fields = [item for item in coupling.param_fields[param] if item.axis == dim]
        ids = fields[0].ids.flatten().tolist() if fields else [0] * len(labels)
        for label, unit in zip(found.classes(labels), ids, strict=True):
            assert ours.setdefault(label, unit) == unit, f"{param}[{dim}]: apart, though joined by theory"
            assert theirs.setdefault(unit, label) == label, f"{param}[{dim}]: joined or held without need"
    assert sorted(group.width for group in coupling.groups) == sorted(len(group) for group in groups)


def once_is_enough(small: fx.GraphModule, plan: fp.Plan) -> None:
    """A graph that has been shrunk is refused, and the passes leave it alone."""
    with pytest.raises(fp.PlanError, match="has been shrunk already"):
        fp.shrink(small, plan)
    twin = clone(small)
    assert not modified(PinSizes()(twin))
    assert not modified(Shrink(plan)(twin))


@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_are_coupled_as_by_hand_and_shrink_exactly(part: int) -> None:
    @seeded(part)
    @settings(
        max_examples=EXAMPLES // PARTS,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.lists(CHOICES, min_size=1, max_size=5), st.integers(0, 2**16))
    def holds(choices: list[Choice], number: int) -> None:
        check(choices, number)

    holds()
