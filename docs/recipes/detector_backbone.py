"""The backbone of a detector: pruned by itself, with outputs as wide as the heads expect, and put back."""

import torch
import torchvision
from torch.export import Dim

import fxprune as fp

detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
    weights=None, weights_backbone=None
).eval()
images = torch.randn(8, 3, 64, 64)

result = fp.prune(
    detector.backbone,
    images[:2],
    budget=fp.Budget(flops=0.8),
    calibration=images,
    recipe="fast",
    dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},),  # detectors see images of all sizes
)

result.model.out_channels = detector.backbone.out_channels
detector.backbone = result.model
with torch.no_grad():
    print([sorted(found) for found in detector([torch.rand(3, 96, 128)])])
