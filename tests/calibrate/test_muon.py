"""Steps of many matrices at once: those of torch's Muon, whatever else is stacked with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.calibrate.muon import Muon, orthogonalised

SHAPES = [(3, 27), (16, 100), (15, 97), (40, 5), (1, 9), (64, 64)]


def steps(optimizer: torch.optim.Optimizer, matrices: list[nn.Parameter], count: int = 3) -> list[Tensor]:
    """Where the matrices are after some steps along random gradients."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator).to(matrix.dtype)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def matrices_of(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def groups_of(matrices: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": [matrix], "lr": 0.1 * (number + 1)} for number, matrix in enumerate(matrices)]


def test_steps_are_those_of_torch_up_to_its_precision() -> None:
    ours, theirs = matrices_of(SHAPES), matrices_of(SHAPES)
    other = torch.optim.Muon(groups_of(theirs), weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for found, wanted in zip(steps(Muon(groups_of(ours)), ours), steps(other, theirs), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.03  # it computes in bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_does_not_notice_with_which_others_it_is_stacked(dtype: torch.dtype) -> None:
    shapes = [(13, 100), (14, 97), (97, 13)]
    together, alone = matrices_of(shapes, dtype), matrices_of(shapes, dtype)
    gradients = [torch.randn(shape, dtype=dtype) for shape in shapes]
    for matrix, other, gradient in zip(together, alone, gradients, strict=True):
        matrix.grad, other.grad = gradient, gradient.clone()
    optimizer = Muon(groups_of(together))
    assert len(optimizer._stacks()) == 1
    optimizer.step()
    for group in groups_of(alone):
        Muon([group]).step()
    for found, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(found, wanted)


def test_singular_values_come_near_one_and_nothing_stays_nothing() -> None:
    stack = torch.stack([torch.randn(12, 50), torch.zeros(12, 50)])
    full, empty = torch.linalg.svdvals(orthogonalised(stack))
    assert float(full.min()) > 0.6 and float(full.max()) < 1.3
    assert not bool(empty.any())


def test_a_matrix_without_a_gradient_stays_where_it_is() -> None:
    first, second = matrices_of([(4, 9), (4, 9)])
    first.grad = torch.ones_like(first)
    optimizer = Muon(groups_of([first, second]))
    optimizer.step()
    assert bool(first.any()) and not bool(second.any())


def test_the_momentum_is_kept_for_a_run_that_goes_on() -> None:
    whole, parts = matrices_of(SHAPES), matrices_of(SHAPES)
    steps(Muon(groups_of(whole)), whole, 4)
    generator = torch.Generator().manual_seed(0)
    optimizer = Muon(groups_of(parts))
    for _ in range(4):
        for matrix in parts:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        state, optimizer = optimizer.state_dict(), Muon([{**group, "lr": 9.0} for group in groups_of(parts)])
        optimizer.load_state_dict(state)
        for number, group in enumerate(optimizer.param_groups):
            assert group["lr"] == 0.1 * (number + 1)
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
