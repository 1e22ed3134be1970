"""Preprocessing equals that of torchvision and timm, and can be changed from the command line."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config

from fxprune.cli.preprocessing import Preprocessing, of_timm, of_torchvision
from fxprune.errors import CalibrationError


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b1", "vit_b_16"])
def test_equals_the_preset_of_torchvision(name: str, picture: Image.Image) -> None:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    ours = of_torchvision(preset)
    assert ours is not None
    torch.testing.assert_close(ours.normalize(ours.image(picture)[None])[0], preset(picture))


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "mobilenetv3_small_100"])
def test_equals_the_transform_of_timm(name: str, picture: Image.Image) -> None:
    config = resolve_data_config(model=timm.create_model(name))
    ours = of_timm(config)
    theirs = create_transform(**config, is_training=False)(picture)
    torch.testing.assert_close(ours.normalize(ours.image(picture)[None])[0], theirs)


def test_other_tasks_have_no_known_preprocessing() -> None:
    detection = torchvision.models.get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.transforms()
    assert of_torchvision(detection) is None


def test_override_replaces_only_what_is_given() -> None:
    own = Preprocessing((0.5,), (0.25,), (224, 224), 256)
    assert own.override(None, None, None, None) == own
    assert own.override((0.0,), None, None, None) == Preprocessing((0.0,), (0.25,), (224, 224), 256)
    assert own.override(None, None, 112, None) == Preprocessing((0.5,), (0.25,), (112, 112), 128)
    assert own.override(None, None, 112, 120) == Preprocessing((0.5,), (0.25,), (112, 112), 120)
    assert Preprocessing().override(None, None, 32, None) == Preprocessing(None, None, (32, 32), 32)


def test_image_without_size_is_taken_as_large_as_it_is(picture: Image.Image) -> None:
    assert torch.equal(Preprocessing().image(picture), torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_arrays_are_scaled_normalised_and_transposed() -> None:
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    ours = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    values = ours.normalize(ours.array(images))
    assert values.shape == (2, 3, 5, 6)
    assert values.is_contiguous()
    torch.testing.assert_close(values[:, 2], (images[..., 2] / 255 - 0.3) / 0.1)
    assert torch.equal(ours.array(images.permute(0, 3, 1, 2)), ours.array(images))


def test_arrays_are_resized_where_a_size_is_given() -> None:
    assert Preprocessing(size=(8, 8)).array(torch.zeros(2, 5, 6, 3, dtype=torch.uint8)).shape == (2, 3, 8, 8)


def test_arrays_that_are_no_images_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"shape \(2, 5, 6, 7\) is no set of images"):
        Preprocessing().array(torch.zeros(2, 5, 6, 7, dtype=torch.uint8))


def test_a_mean_of_another_number_of_channels_is_refused() -> None:
    with pytest.raises(CalibrationError, match="--std has 2 values, but the images have 3 channels"):
        Preprocessing((0.0,), (1.0, 1.0)).normalize(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
