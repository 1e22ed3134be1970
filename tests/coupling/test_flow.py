"""The families on plain ids."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.coupling.flow import matched_dims
from fxprune.coupling.partition import Partition


def test_matched_dims_of_a_split_and_a_merge() -> None:
    assert list(matched_dims((2, 6, 5), (2, 3, 2, 5))) == [
        (range(1), range(1)),
        (range(1, 2), range(1, 3)),
        (range(2, 3), range(3, 4)),
    ]
    assert [tuple(map(list, pair)) for pair in matched_dims((2, 4, 3, 3), (2, 36))] == [([0], [0]), ([1, 2, 3], [1])]


@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), max_size=5), st.randoms())
def test_matched_dims_hold_the_same_elements(before: list[int], random: object) -> None:
    after, left = [], math.prod(before)
    while left > 1:
        divisor = random.choice([d for d in range(2, left + 1) if left % d == 0])  # type: ignore[attr-defined]
        after.append(divisor)
        left //= divisor
    seen: list[list[int]] = [[], []]
    for sources, targets in matched_dims(tuple(before), tuple(after)):
        assert math.prod(before[i] for i in sources) == math.prod(after[j] for j in targets)
        seen[0] += sources
        seen[1] += targets
    assert seen == [list(range(len(before))), list(range(len(after)))]


def test_partition_joins_transitively_and_holds_with_the_first_reason() -> None:
    partition = Partition()
    ids = partition.fresh(6)
    partition.union(ids[:3], ids[3:], "unused")
    partition.union(ids[3:4], ids[4:5], "unused")
    partition.hold(ids[1:2], "first")
    partition.hold(ids[0:1], "second")
    assert partition.settle()
    assert partition.canonical(ids).tolist() == [0, 0, 3, 0, 0, 3]
    assert partition.reason(ids[3:4]) == "first"
    assert partition.reason(ids[2:3]) is None
    assert not partition.settle()


def test_joining_with_the_permanent_id_holds() -> None:
    partition = Partition()
    ids = partition.fresh(2)
    partition.union(ids, torch.tensor([0, 2]), "beside a constant")
    partition.settle()
    assert partition.canonical(ids).tolist() == [0, 2]
    assert partition.reason(ids[:1]) == "beside a constant"


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40))
def test_partition_agrees_with_a_naive_one(edges: list[tuple[int, int]]) -> None:
    partition = Partition()
    ids = partition.fresh(30)
    naive = {int(unit): {int(unit)} for unit in ids}
    for left, right in edges:
        partition.union(torch.tensor([left]), torch.tensor([right]), "")
        merged = naive[left] | naive[right]
        naive.update(dict.fromkeys(merged, merged))
    partition.settle()
    assert partition.canonical(ids).tolist() == [min(naive[int(unit)]) for unit in ids]
