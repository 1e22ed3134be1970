"""Widths before training: a crop at half the parameters, and a network that may also grow, at the same budget."""

import torch
import torchvision

import fxprune as fp

model = torchvision.models.resnet18(num_classes=10)
example = torch.randn(1, 3, 32, 32)

crop = fp.precrop(model, example, budget=fp.Budget(params=0.5), reinitialise=True)
other = fp.precrop(model, example, budget=fp.Budget(params=0.5, flops=1.0), grow=True)

for before, after in zip(crop.report.groups, other.report.groups, strict=True):
    print(f"{before.name}: {before.before} -> {before.after} or {after.after}")
