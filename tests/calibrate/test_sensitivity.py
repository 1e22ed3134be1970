"""Sensitivities: of outputs of one number, however the images are cut into batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.calibrate.evaluate import Evaluator, Values
from fxprune.calibrate.sensitivity import element_weights, projected_gradients
from fxprune.capture import capture


def single() -> Evaluator:
    """A network that gives one number for each image."""
    torch.manual_seed(0)
    return Evaluator(capture(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), (torch.randn(2, 5),)))


def given(network: Evaluator, part: Tensor) -> Values:
    """A batch and the parameters, as values of the nodes that read them."""
    parameters = {node.name: network.run(node, {}) for node in network.gm.graph.nodes if node.op == "get_attr"}
    return {**parameters, "input_1": part}


def test_the_gradient_of_a_lone_number_is_relative_to_the_number() -> None:
    network, image = single(), torch.randn(1, 5)
    values, gradients = projected_gradients(network, ["relu"], given(network, image), torch.Generator(), ["linear_1"])
    wanted = network.gm.get_parameter("2.weight") / values["linear_1"]
    torch.testing.assert_close(gradients["relu"].abs(), wanted.abs())


def test_an_image_alone_in_a_batch_does_not_outweigh_the_others() -> None:
    network = single()
    images = torch.randn(65, 5, generator=torch.Generator().manual_seed(1))
    images[32] = -network.gm.get_parameter("0.weight")[0].detach() * 9  # leaves the first unit at rest

    def weights(*parts: Tensor) -> Tensor:
        return element_weights(network, ["linear"], (given(network, part) for part in parts))["linear"]

    assert float(weights(images[32:33])[0, 0]) == 0
    torch.testing.assert_close(weights(*images.split([32, 1, 32])), weights(*images.split([32, 33])), rtol=0.5, atol=0)
