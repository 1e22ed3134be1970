"""Augmentation: every image is the original mirrored or not, shifted by an eighth at most; other inputs stay."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fxprune.calibrate.augment import augmented


def test_images_are_mirrored_and_shifted_with_their_borders_reflected() -> None:
    images = torch.randn(64, 3, 16, 24)
    (moved,) = augmented((images,), torch.Generator().manual_seed(0))
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


def test_what_is_no_image_stays_and_images_of_one_sample_move_alike() -> None:
    image, ids, tokens = torch.randn(8, 1, 16, 16), torch.arange(8), torch.randn(8, 5, 7)
    left, right, same_ids, same_tokens = augmented((image, image, ids, tokens), torch.Generator().manual_seed(1))
    assert torch.equal(left, right) and not torch.equal(left, image)
    assert same_ids is ids and same_tokens is tokens


def test_the_same_seed_moves_the_same_way() -> None:
    image = torch.randn(8, 1, 16, 16)
    first, second = (augmented((image,), torch.Generator().manual_seed(2))[0] for _ in range(2))
    assert torch.equal(first, second)
