"""A vision transformer that loses whole attention heads, and hidden units of its MLPs."""

import torch
from torchvision.models import VisionTransformer

import fxprune as fp

model = VisionTransformer(
    image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
)
images = torch.randn(64, 3, 32, 32)

result = fp.prune(model, images[:2], budget=fp.Budget(params=0.7), calibration=images, recipe="fast", heads=True)

print(result.report)
