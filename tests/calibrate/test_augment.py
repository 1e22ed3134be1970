"""Augmentation: images are mirrored, shifted by an eighth at most, and mixed in pairs; other inputs stay."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fxprune.calibrate.augment import Mixture, Move, augmented


def test_images_are_mirrored_and_shifted_with_their_borders_reflected() -> None:
    images = torch.randn(64, 3, 16, 24)
    moved = Move.drawn(64, torch.Generator().manual_seed(0))(images)
    mirrors, shifts = set(), set()
    for image, result in zip(images, moved, strict=True):
        padded = F.pad(image[None], (3, 3, 2, 2), mode="reflect")[0]
        found = [
            (mirror, top, left)
            for mirror in (False, True)
            for top in range(5)
            for left in range(7)
            if torch.equal(result.flip(2) if mirror else result, padded[:, top : top + 16, left : left + 24])
        ]
        assert len(found) == 1
        mirrors.add(found[0][0])
        shifts.add(found[0][1:])
    assert mirrors == {False, True}
    assert len(shifts) > 15


def test_a_blend_keeps_its_share_of_every_pixel() -> None:
    images = torch.randn(3, 2, 8, 8)
    partner, share = torch.tensor([1, 2, 0]), torch.tensor([0.25, 1.0, 0.0])
    mixed = Mixture(partner, share, torch.ones(3, dtype=torch.bool), torch.rand(2, 3))(images)
    torch.testing.assert_close(mixed[0], 0.25 * images[0] + 0.75 * images[1])
    assert torch.equal(mixed[1], images[1]) and torch.equal(mixed[2], images[0])


def test_a_rectangle_has_the_area_that_is_not_kept_and_comes_from_the_other_image() -> None:
    images = torch.stack([torch.zeros(1, 16, 32), torch.ones(1, 16, 32)])
    centre = torch.tensor([[0.5, 0.25], [0.5, 1.0]])  # the second is cut by the right border
    mixed = Mixture(torch.tensor([1, 0]), torch.tensor([0.75, 0.75]), torch.zeros(2, dtype=torch.bool), centre)(images)
    wanted = torch.zeros(16, 32)
    wanted[4:12, 8:24] = 1
    assert torch.equal(mixed[0, 0], wanted)
    wanted = torch.ones(16, 32)
    wanted[0:8, 24:] = 0
    assert torch.equal(mixed[1, 0], wanted)


def test_shares_are_even_and_both_ways_of_mixing_occur() -> None:
    drawn = Mixture.drawn(1000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.partner.sort().values, torch.arange(1000))
    assert abs(float(drawn.share.mean()) - 0.5) < 0.05
    assert abs(float(drawn.blended.float().mean()) - 0.5) < 0.05


def test_a_mixture_keeps_the_type_of_the_images() -> None:
    images = torch.randn(4, 3, 8, 8, dtype=torch.float16)
    assert Mixture.drawn(4, torch.Generator().manual_seed(0))(images).dtype == torch.float16


def test_what_is_no_image_stays_and_images_of_one_sample_move_alike() -> None:
    image, ids, tokens = torch.randn(8, 1, 16, 16), torch.arange(8), torch.randn(8, 5, 7)
    left, right, same_ids, same_tokens = augmented((image, image, ids, tokens), torch.Generator().manual_seed(1))
    assert torch.equal(left, right) and not torch.equal(left, image)
    assert same_ids is ids and same_tokens is tokens


def test_an_image_alone_is_mixed_with_itself() -> None:
    image = torch.full((1, 3, 8, 8), 2.0)
    (same,) = augmented((image,), torch.Generator().manual_seed(3))
    torch.testing.assert_close(same, image)


def test_the_same_seed_moves_the_same_way() -> None:
    image = torch.randn(8, 1, 16, 16)
    first, second = (augmented((image,), torch.Generator().manual_seed(2))[0] for _ in range(2))
    assert torch.equal(first, second)
