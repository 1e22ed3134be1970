"""From pruning to ONNX, and the largest difference that onnxruntime makes."""

import onnxruntime
import torch
import torchvision

import fxprune as fp

model = torchvision.models.mobilenet_v2(width_mult=0.35)
images = torch.randn(64, 3, 32, 32)

result = fp.prune(model, images[:2], budget=fp.Budget(flops=0.5), calibration=images, recipe="fast")
torch.onnx.export(result.program(), (), "small.onnx", dynamo=True)

session = onnxruntime.InferenceSession("small.onnx")
(outputs,) = session.run(None, {session.get_inputs()[0].name: images[:5].numpy()})
with torch.no_grad():
    print(f"largest difference: {(torch.from_numpy(outputs) - result.model(images[:5])).abs().max():.1e}")
