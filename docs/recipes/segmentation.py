"""A segmentation network, whose output is a dict of maps: channels that carry classes stay, all others may go."""

import torch
import torchvision

import fxprune as fp

model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
images = torch.randn(8, 3, 32, 32)

result = fp.prune(model, images[:2], budget=fp.Budget(flops=0.8), calibration=images, recipe="fast")

maps = result.model(torch.randn(3, 3, 32, 32))["out"]
print(tuple(maps.shape))
