"""Training goes on after pruning: the result has the original's names, BatchNorm and dropout are alive."""

import torch
import torchvision
from torch.nn import functional as F

import fxprune as fp

model = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.35)
images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

result = fp.prune(model, images[:2], budget=fp.Budget(flops=0.7), calibration=images, recipe="fast")

small = result.model.train()
optimizer = torch.optim.SGD(small.parameters(), lr=0.01, momentum=0.9)
for batch, answers in zip(images.split(16), labels.split(16), strict=True):
    loss = F.cross_entropy(small(batch), answers)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.3f}")

twin = result.plan.apply(model)  # your own class, with all that its forward does in training
twin.load_state_dict(small.state_dict(), strict=False)  # without the biases that corrections have added
