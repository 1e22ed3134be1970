"""The zoo's harness, and the oracle on some of its networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune as fp
from benchmarks import peer, zoo, zoo_table
from benchmarks.examine import examine
from benchmarks.models import Network, build, entries
from benchmarks.oracle import TOLERANCE, Local, random_plan
from fxprune.types import Field

SMALL = ("timm:test_vit", "timm:test_mambaout")
REPRESENTATIVE = (
    "timm:coat_tiny", "timm:convmixer_768_32", "timm:crossvit_tiny_240", "timm:dla46x_c", "timm:edgenext_xx_small",
    "timm:efficientformerv2_s0", "timm:efficientvit_m0", "timm:fasternet_t0", "timm:gcvit_xxtiny", "timm:ghostnet_050",
    "timm:gmlp_ti16_224", "timm:halonet_h1", "timm:levit_128s", "timm:mixnet_s", "timm:mobilevit_xxs",
    "timm:mobilevitv2_050", "timm:pit_ti_224", "timm:pvt_v2_b0", "timm:res2next50", "timm:resnest14d",
    "timm:skresnet18", "timm:swiftformer_xs", "timm:test_byobnet", "timm:test_convnext", "timm:xcit_nano_12_p8_224",
    "torchvision/classification:densenet121", "torchvision/classification:maxvit_t",
    "torchvision/classification:shufflenet_v2_x0_5", "torchvision/classification:swin_v2_t",
    "torchvision/segmentation:lraspp_mobilenet_v3_large",
    "torchvision/video:s3d",
)  # fmt: skip


def check(spec: str) -> None:
    found: dict[str, Any] = {}
    for findings in examine(spec, 1, 60):
        found |= findings
    assert found["stage"] == "done"
    assert found["groups"] == found["single_checked"] > 0
    assert max(found["whole_error"], found["single_error"], found.get("heads_error", 0.0)) <= TOLERANCE


@pytest.mark.parametrize("spec", SMALL)
def test_small_networks_of_the_zoo_shrink_exactly(spec: str) -> None:
    check(spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", REPRESENTATIVE)
def test_representative_networks_of_the_zoo_shrink_exactly(spec: str) -> None:
    check(spec)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(216, 4)
    return nn.Sequential(*layers).eval()


def test_the_local_oracle_finds_a_field_in_the_wrong_order() -> None:
    local = Local(fp.capture(small_network(), torch.randn(2, 3, 8, 8)))
    plan = fp.Plan({"0.weight": [0, 1, 2, 5]})
    assert local.check(plan).error < 1e-12
    (item,) = local.coupling.fields["relu"]
    turned = {**local.coupling.fields, "relu": (Field(item.ids.flip(item.axis), item.axis, item.zero),)}
    local.coupling = replace(local.coupling, fields=turned)
    found = local.check(plan)
    assert found.error > 0.1
    assert found.node == "relu"


def test_random_plans_are_possible_and_remove_something() -> None:
    gm = fp.capture(small_network(), torch.randn(2, 3, 8, 8))
    coupling = fp.analyze(gm)
    for seed in range(5):
        plan = random_plan(coupling, seed, balanced=False)
        assert all(len(plan.kept[group.name]) < group.width for group in coupling.groups)
    assert [len(units) for units in random_plan(coupling, 0, balanced=True).kept.values()] == [4, 3]


def test_the_list_names_each_network_once_smallest_first() -> None:
    listed = entries()
    assert len({entry.spec for entry in listed}) == len(listed) > 250
    assert [entry.params for entry in listed] == sorted(entry.params for entry in listed)
    assert {*SMALL, *REPRESENTATIVE} <= {entry.spec for entry in listed}


def test_built_networks_have_random_affines_and_the_smallest_image() -> None:
    network = build("timm:test_resnet")
    assert network.example.shape == (2, 3, 64, 64)
    assert network.outputs == 1000
    for name, tensor in network.model.named_parameters():
        assert tensor.numel() < 2 or tensor.std() > 0, name


def test_a_limit_ends_a_process_and_keeps_what_is_known() -> None:
    found = zoo.in_a_process(_slow, (), seconds=1.0, memory=1000)
    assert found["failure"] == "time limit of 1 s"
    assert found["known"] == 1


def _slow() -> Any:
    yield {"known": 1}
    torch.rand(3).sort()
    while True:
        pass


def test_an_error_is_a_finding() -> None:
    assert zoo.in_a_process(_wrong, (), seconds=10.0, memory=1000)["failure"] == "ValueError: so"


def _wrong() -> Any:
    yield {"known": 1}
    raise ValueError("so")


def test_a_later_result_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"spec": "a", "ours": {"groups": 1}}\n{"spec": "a", "peer": {}}\n{"spec": "a", "ours": {}}\n')
    assert zoo.load(file) == {"a": {"spec": "a", "ours": {}, "peer": {}}}


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"groups": 2, "single_checked": 2, "whole_error": 1e-15, "single_error": 0.0}, "exact"),
        ({"groups": 2, "single_checked": 1, "whole_error": 1e-15}, "exact (1 groups one by one)"),
        ({"groups": 2, "single_checked": 2, "whole_error": 1e-7}, "**WRONG**: all groups at once"),
        ({"groups": 0}, "nothing can shrink"),
        ({"failure": "CaptureError: no", "stage": "capture"}, "CaptureError: no (capture)"),
    ],
)
def test_verdicts(ours: dict[str, Any], expected: str) -> None:
    assert zoo_table.verdict({"spec": "a", "ours": ours}) == expected


def test_the_peer_is_judged_by_what_it_left() -> None:
    pytest.importorskip("torch_pruning")
    original = small_network().double()
    network = Network(original, torch.randn(2, 3, 8, 8).double(), 4)
    pruned = small_network().double()
    peer._prune(pruned, network.example, network, ())
    findings = {key: value for found in peer._judged(original, pruned, network.example) for key, value in found.items()}
    assert findings["verdict"] == "exact"
    assert findings["share"] > 0.9
