"""How the demo's weights were made: `python -m fxprune.demo.train` (a few minutes on one core) writes them anew."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune.demo.digits import Digits, load
from fxprune.demo.network import WEIGHTS, DigitNet

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 60, 50, 0.1, 5e-4


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to two pixels in both directions, the border filled with background."""
    padded = F.pad(images, (2, 2, 2, 2))
    offsets = torch.randint(0, 5, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + 16, x : x + 16] for image, (y, x) in zip(padded, offsets, strict=True)])


def train(data: Digits, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """A DigitNet trained from scratch by SGD with momentum under a cosine schedule, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitNet()
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * -(-len(data.labels) // BATCH)
    )
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(data.labels), generator=generator), BATCH):
            logits = model(shifted(data.images[batch], generator))
            loss = F.cross_entropy(logits, data.labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of `data` that the model classifies rightly, in percent."""
    hits = model(data.images).argmax(1) == data.labels
    return 100 * int(hits.sum()) / len(hits)


def main() -> None:
    """Train on the training digits, report the test accuracy, write the weights."""
    training, test = load()
    model = train(training)
    save_file(model.state_dict(), WEIGHTS)
    print(f"test accuracy {accuracy(model, test):.2f} %, {WEIGHTS.stat().st_size:,} bytes in {WEIGHTS}")


if __name__ == "__main__":
    main()
