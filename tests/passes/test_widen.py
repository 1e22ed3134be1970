"""Shrink with a plan that widens: golden text, copies that are where they belong, and what is refused."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

import fxprune as fp
from fxprune.coupling.kept import Kept
from fxprune.passes.base import COUPLING, DENSE, PLAN, clone, replace_tensors, state
from fxprune.passes.lift import Lift
from fxprune.passes.sizes import RESIZE
from fxprune.passes.verify import in_float64, relative_error
from fxprune.types import Axis, Coupling
from tests.networks import EXAMPLES, NETWORKS, build, calls, captured, images, inputs
from tests.passes.test_shrink_examples import ATTENTION, costs_agree

EVERY = [*NETWORKS, *EXAMPLES]
INDEXED = ["Indexed", "IndexSelected", "Gathered", "IndexedOnto", "IndexedTwice"]
# Values that are multiplied by one another along channels, as in attention, and means that are pinned to a width.
NOT_THE_SAME = {
    *("Attention", "AttentionByHand", "AttentionByEinsum", "FusedAttention", "ChunkedAttention", "MultiQuery"),
    *("MultiheadAttention", "MultiheadAttentionOfSequences", "GroupedQueriesByOp", "GroupedQueriesInterleaved"),
    *("ShiftedWindows", "ComplexRotary", "CosineAttention", "Vision", "Bert", "Llama", "LlamaTied", "UNet"),
    *("SpatialAttentionByMean", "RMSNormByHand", "Batched", "TiedTransposed", "WordVectors"),
}


def wider(coupling: Coupling, seed: int, heads: bool = False) -> fp.Plan:
    """Every block half as long again: all of its units, and some of them twice or more often."""
    rng = random.Random(seed)
    kept = {}
    for group in coupling.groups:
        blocks = group.blocks or (tuple(range(group.width)),)
        extra = -(-len(blocks[0]) // 2)
        kept[group.name] = [unit for block in blocks for unit in (*block, *rng.choices(block, k=extra))]
    return fp.Plan(kept, heads=heads, widens=True)


class Golden(NamedTuple):
    """A plan that widens a network, lines of what it makes of it, and shapes of its parameters."""

    name: str
    kept: dict[str, list[int]]
    text: str
    shapes: dict[str, tuple[int, ...]]


GOLDEN = {
    "a channel that becomes four features of a flattened image": Golden(
        "Plain",
        {"conv1.weight": [0, 0, 1, 2, 3, 4, 5, 5], "conv2.weight": [0, 1, 2, 3, 3]},
        """conv2d[8, 8, 8] = conv2d.default(x, [1, 1], [1, 1])
conv2d_1[5, 4, 4] = conv2d.default(max_pool2d, [1, 1], [1, 1])
flatten[20] = flatten.using_ints(adaptive_avg_pool2d, 1)
linear[5] = linear.default(flatten)""",
        {"conv2.weight": (5, 8, 3, 3), "fc1.weight": (5, 20)},
    ),
    "a residual stream": Golden(
        "Residual",
        {"stem.0.weight": [0, 1, 2, 3, 3, 3], "conv1.0.weight": [0, 1]},
        """conv2d_1[2, 8, 8] = conv2d.default(relu, [1, 1], [1, 1])
batch_norm_2[6, 8, 8] = batch_norm.default(conv2d_2, False, False)
add[6, 8, 8] = add.Tensor(relu, batch_norm_2)""",
        {"conv1.0.weight": (2, 6, 3, 3), "conv2.1.running_var": (6,), "head.weight": (3, 6)},
    ),
    "a depthwise convolution": Golden(
        "Depthwise",
        {"expand.0.weight": [*range(8), 0, 1, 2, 3], "squeeze.weight": [0, 1, 1]},
        """conv2d_2[12, 8, 8] = conv2d.default(hardswish_1, [1, 1], [1, 1], [1, 1], 12)
conv2d_3[3, 1, 1] = conv2d.default(adaptive_avg_pool2d)""",
        {"depth.0.weight": (12, 1, 3, 3), "excite.weight": (12, 3, 1, 1)},
    ),
    "a grouped convolution": Golden(
        "Grouped",
        {"conv1.0.weight": [0, 0, 1, 2, 3, 4, 5, 6, 7, 7], "conv2.0.weight": [*range(8)] * 2},
        "conv2d_1[16, 8, 8] = conv2d.default(relu, [1, 1], [1, 1], [1, 1], 2)",
        {"conv2.0.weight": (16, 5, 3, 3), "conv3.0.weight": (4, 16, 1, 1)},
    ),
    "attention, whose heads get more dimensions": Golden(
        "FusedAttention",
        {"embed.weight": [0, 1, 2, 3, 4, 5, 5], "qkv.weight": [*range(16), 0, 4, 8, 12, 0, 4, 8, 12]},
        """linear_1[6, 36] = linear.default(linear)
reshape[6, 3, 2, 6] = reshape.default(linear_1, sym_size_int_1, [sym_size_int_1, 6, 3, 2, 6])
scaled_dot_product_attention[2, 6, 6] = scaled_dot_product_attention.default(getitem, getitem_1, getitem_2)
reshape_1[6, 12] = reshape.default(transpose, sym_size_int_1, [sym_size_int_1, 6, 12])""",
        {"qkv.weight": (36, 7)},
    ),
    "concatenation": Golden(
        "Dense",
        {"stem.weight": [0, 1, 2, 3, 3], "grow1.weight": [0, 1, 1, 2]},
        """cat[9, 8, 8] = cat.default(conv2d, conv2d_1, 1)
batch_norm_1[9, 8, 8] = batch_norm.default(cat, False, False)""",
        {"norm2.weight": (9,), "grow2.weight": (3, 9, 3, 3), "head.weight": (3, 12)},
    ),
    "an unequal split": Golden(
        "SplitUnequal",
        {"conv.0.weight#1": [0, 0, 0, 1, 2, 3], "conv.0.weight#2": [0, 0, 1, 1, 1]},
        """split = split_with_sizes.default(relu, [6, 6, 5], 1)
mul[6, 8, 8] = mul.Tensor(getitem, getitem_1)
cat[11, 8, 8] = cat.default(getitem_2, mul, 1)""",
        {"conv.0.weight": (17, 3, 3, 3)},
    ),
    "pixel shuffle": Golden(
        "PixelShuffled",
        {"conv.0.weight": [0, 1, 1, 2, 2]},
        """relu[20, 8, 8] = relu.default(batch_norm)
pixel_shuffle[5, 16, 16] = pixel_shuffle.default(relu, 2)""",
        {"conv.0.weight": (20, 3, 3, 3), "read.weight": (5, 5, 3, 3)},
    ),
    "groups of channels that are normalised together": Golden(
        "GroupNorm",
        {"conv.weight": [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 7]},
        "group_norm[12, 8, 8] = group_norm.default(conv2d, 2, False)",
        {"norm.weight": (12,)},
    ),
    "channels that are normalised each by itself": Golden(
        "GroupNormOfEach",
        {"conv.weight": [*range(8), 0, 0]},
        "group_norm[10, 8, 8] = group_norm.default(conv2d, 10, False)",
        {"norm.weight": (10,)},
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_text(case: str) -> None:
    golden = GOLDEN[case]
    wide = fp.shrink(captured(golden.name), fp.Plan(golden.kept, widens=True))
    lines, wanted = calls(wide).splitlines(), golden.text.splitlines()
    assert [line for line in lines if line in wanted] == wanted, "\n".join(lines)
    tensors = wide.state_dict()
    assert {parameter: tuple(tensors[parameter].shape) for parameter in golden.shapes} == golden.shapes


def test_attention_keeps_its_scale() -> None:
    gm = captured("FusedAttention")
    wide = fp.shrink(gm, wider(fp.analyze(gm), 0))
    node = next(node for node in wide.graph.nodes if "scaled_dot_product" in node.name)
    assert node.meta["val"].shape[-1] == 6
    assert node.kwargs["scale"] == 4**-0.5


@pytest.mark.parametrize("name", [name for name in EVERY if name not in INDEXED])
def test_a_widened_network_costs_what_was_predicted_and_can_be_shrunk_back(name: str) -> None:
    gm = captured(name)
    _widen_and_come_back(gm, wider(fp.analyze(gm), 0), inputs(name, 1))
    if name not in NOT_THE_SAME:
        _copies_that_share_compute_the_same(gm, inputs(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_whole_heads_are_repeated(name: str) -> None:
    gm = captured(name)
    _widen_and_come_back(gm, wider(fp.analyze(gm, heads=True), 1, heads=True), inputs(name, 1))


def _widen_and_come_back(gm: fx.GraphModule, plan: fp.Plan, example: tuple[Tensor, ...]) -> None:
    coupling = fp.analyze(gm, plan.heads)
    wide = fp.shrink(gm, plan)
    wide.graph.lint()
    costs_agree(wide, fp.cost(gm, coupling), plan, example)
    found = fp.analyze(_anew(wide), plan.heads)
    assert {group.name: group.width for group in found.groups} == plan.counts
    kept = {}
    for group in found.groups:
        blocks = group.blocks or (tuple(range(group.width)),)
        each = coupling.by_name[group.name].width // len(blocks)
        kept[group.name] = [unit for block in blocks for unit in block[:each]]
    back = fp.shrink(_anew(wide), fp.Plan(kept, heads=plan.heads))
    dense = gm.state_dict()
    assert {n: tensor.shape for n, tensor in back.state_dict().items()} == {n: t.shape for n, t in dense.items()}
    _trains(wide, example)


def _anew(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph as an original of its own."""
    again = clone(gm)
    for key in (DENSE, PLAN, COUPLING):
        state(again).pop(key, None)
    return again


def _trains(wide: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    Lift()(wide)
    found = pytree.tree_leaves(wide(*example))
    outputs = [item for item in found if isinstance(item, Tensor) and item.requires_grad]
    torch.stack([item.abs().square().sum() for item in outputs]).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in wide.parameters() if p.grad is not None)
    assert any(p.grad is not None for p in wide.parameters())


def _copies_that_share_compute_the_same(gm: fx.GraphModule, given: tuple[Tensor, ...]) -> None:
    """What n copies of a channel carry counts n times in every sum, unless their readers weigh it by 1 / n.

    Where a normalisation takes its statistics over channels, only equally many copies of each leave them as they are.
    """
    example = [item.double() if item.is_floating_point() else item for item in given]
    coupling = fp.analyze(gm)
    twice = fp.Plan({group.name: [*range(group.width)] * 2 for group in coupling.groups}, widens=True)
    for plan in (twice,) if coupling.changes_statistics else (twice, wider(coupling, 0)):
        wide = _shared(gm, fp.shrink(gm, plan), Kept.under(coupling, plan))
        with torch.no_grad():
            pair = [pytree.tree_leaves(network(*example)) for network in (in_float64(gm), wide)]
        assert max(relative_error(found, wanted) for wanted, found in zip(*pair, strict=True)) < 1e-10


def _shared(gm: fx.GraphModule, wide: fx.GraphModule, kept: Kept) -> fx.GraphModule:
    """The widened network in float64, with what reads a repeated unit divided by the number of its copies."""
    dense, coupling = dict(in_float64(gm).state_dict()), kept.coupling

    def share(name: str, tensor: Tensor) -> Tensor:
        fields, whole = coupling.param_fields.get(name, ()), dense.get(name)
        if not fields or whole is None or not whole.is_floating_point():
            return tensor
        for item in fields:
            if coupling.roles[Axis(name, item.axis)] == "consumes":
                whole = whole / kept.counts[item.ids]
        return kept.cut(whole, fields)

    twin = in_float64(wide)
    assert isinstance(twin, fx.GraphModule)
    replace_tensors(twin, share)
    return twin


def test_a_unit_of_several_positions_in_a_row_is_repeated_as_a_whole() -> None:
    gm = captured("Plain")
    wide = fp.shrink(gm, fp.Plan({"conv2.weight": [0, 1, 1, 3]}, widens=True))
    weight = gm.get_parameter("fc1.weight")
    columns = [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15]
    assert torch.equal(wide.get_parameter("fc1.weight"), weight[:, columns])


def test_rows_of_a_grouped_convolution_are_repeated_each_by_its_own_units() -> None:
    gm = captured("Grouped")
    wide = fp.shrink(gm, fp.Plan({"conv1.0.weight": [0, 1, 1, 4, 4, 7], "conv2.0.weight": [0, 5]}, widens=True))
    weight = gm.get_parameter("conv2.0.weight")
    wanted = torch.stack([weight[0, [0, 1, 1]], weight[5, [0, 0, 3]]])
    assert torch.equal(wide.get_parameter("conv2.0.weight"), wanted)


def test_some_groups_grow_while_others_shrink() -> None:
    gm = captured("Residual")
    plan = fp.Plan({"stem.0.weight": [1, 1, 2], "conv1.0.weight": [*range(6)] * 3}, widens=True)
    wide = fp.shrink(gm, plan)
    assert wide.get_parameter("conv1.0.weight").shape == (18, 3, 3, 3)
    assert wide(images()).shape == (2, 3)


def test_the_users_own_module_is_widened_too() -> None:
    model = build("Residual")
    plan = fp.Plan({"conv1.0.weight": [*range(6), 0, 0]}, widens=True)
    twin = plan.apply(model, images())
    assert type(twin) is type(model)
    assert twin.get_submodule("conv2.0").in_channels == 8
    assert torch.allclose(twin(images()), fp.shrink(fp.capture(model, images()), plan)(images()), atol=1e-6)


@pytest.mark.parametrize("name", INDEXED)
def test_channels_that_are_read_at_an_index_are_refused_by_name(name: str) -> None:
    gm = captured(name)
    message = r"channels that are read at an index cannot be made several times: `(index|index_select|gather)` \(aten"
    with pytest.raises(fp.PlanError, match=message):
        fp.shrink(gm, wider(fp.analyze(gm), 0))


def test_an_op_that_does_not_follow_is_the_plans_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RESIZE, torch.ops.aten.group_norm.default)
    plan = fp.Plan({"conv.weight": [*range(8), 0]}, widens=True)
    message = "cannot be made as wide as the plan says: .* at `group_norm` .*divisible by num_groups"
    with pytest.raises(fp.PlanError, match=message):
        fp.shrink(captured("GroupNormOfEach"), plan)


def test_verification_is_refused() -> None:
    gm = captured("Residual")
    plan = fp.Plan({"conv1.0.weight": [0, 0, 1]}, widens=True)
    with pytest.raises(fp.PlanError, match="a plan that makes units several times has no oracle"):
        fp.verify(gm, fp.shrink(gm, plan), plan)
    once = fp.Plan({"conv1.0.weight": [0, 1]}, widens=True)
    assert fp.verify(gm, fp.shrink(gm, once), once).ok
