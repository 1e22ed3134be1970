"""What users do today: prune by L1 norms, and train the rest with labels."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy_batch_norm import reestimated
from benchmarks.accuracy_data import SETTINGS, batches
from benchmarks.accuracy_peers import L1, notes, pruned
from benchmarks.accuracy_rows import Made, Task

RATE, MOMENTUM, DECAY, BATCH, MARGIN = 0.05, 0.9, 5e-4, 128, 4


def retrained(task: Task) -> Made:
    """Torch-Pruning by L1 norms, BatchNorm re-estimated, then trained with labels; the last weights count."""
    small = reestimated(pruned(task, L1), task.images)
    found = list(batches(task.network, SETTINGS[task.network].images))
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    train(small, images, labels, task.epochs, task.seed)
    return small, {"epochs": task.epochs} | notes(task)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, rate: float = RATE) -> None:
    """SGD with momentum, an epoch of warm-up, then a cosine; random flips, and crops after padding by 4; in place."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = -(-len(images) // BATCH)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / steps, total_iters=steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, (epochs - 1) * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [steps])
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            x, y = augmented(images[index], generator).to(device), labels[index].to(device)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        print(f"  epoch {epoch + 1}/{epochs}, loss {total / len(images):.3f}", file=sys.stderr, flush=True)
    model.eval()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [batch, channels, height, width] padded by zeros, cropped to its size at random, and maybe flipped."""
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * MARGIN + 1, (2, count), generator=generator)
    rows, columns = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    padded = F.pad(images, [MARGIN] * 4).movedim(1, -1)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]].movedim(-1, 1)
