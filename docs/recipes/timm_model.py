"""A network of timm, shrunk to a number of parameters, in widths that are multiples of 8."""

import timm
import torch

import fxprune as fp

model = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=10).eval()
images = torch.randn(64, 3, 32, 32)

result = fp.prune(model, images[:2], budget=fp.Budget(params=0.7), calibration=images, recipe="fast", multiple_of=8)

for group in result.report.groups:
    print(f"{group.name}: {group.before} -> {group.after}")
