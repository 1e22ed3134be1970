"""A classifier of torchvision: half of its FLOPs, corrected from a few unlabelled images, saved as plain PyTorch."""

import torch
import torchvision

import fxprune as fp

model = torchvision.models.mobilenet_v2(
    width_mult=0.35
)  # with weights="DEFAULT" at full width, and images of 224 pixels
images = torch.randn(64, 3, 32, 32)  # yours: a few hundred, preprocessed as in training; labels are not needed

result = fp.prune(model, images[:2], budget=fp.Budget(flops=0.5), calibration=images, recipe="fast")

print(result.report)
print(result.model.code)
result.save("small_mobilenet")  # model.py, model.safetensors, plan.json, report.json
