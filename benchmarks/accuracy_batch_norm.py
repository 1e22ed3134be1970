"""BatchNorm re-estimation: what every peer is given, for without it most fall to chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.accuracy_data import chunks


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The normalisations of a network that keep running statistics."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@torch.no_grad()
def reestimated(model: nn.Module, images: Tensor) -> nn.Module:
    """The network with running statistics measured anew on the images, the mean over batches of 64; in place."""
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    if norms:
        for batch in chunks(images, model):
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
