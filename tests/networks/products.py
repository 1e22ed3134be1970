"""Networks that multiply: einsum, matmul and bmm, of a parameter or of two activations; lookups by constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.examples import example, tokens


@example("mixed 7, embed.weight 6", tokens)
class Einsum(nn.Module):
    """A parameter applied by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.embed, self.head = nn.Parameter(torch.randn(6, 7) / 3), nn.Linear(5, 6), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(torch.einsum("bnc,cd->bnd", F.relu(self.embed(x)), self.mixed)).mean(1))


@example("left 7, right 6, embed.weight 6", tokens)
class Matmul(nn.Module):
    """Parameters multiplied from the right, one of them plainly, one with its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(6, 7) / 3), nn.Parameter(torch.randn(7, 6) / 3)
        self.shift, self.embed, self.head = nn.Parameter(torch.randn(6)), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(torch.matmul(F.relu(self.embed(x)), self.left))
        return self.head(F.gelu(torch.addmm(self.shift, x.mean(1), self.right)))


# Similarities join the two sides; what is gathered by them is apart.
@example("left.weight 4, value.weight 5", tokens)
class Batched(nn.Module):
    """Similarities of tokens by bmm, without a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.value = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        likeness = torch.bmm(self.left(x), self.right(x).transpose(1, 2)) / 6
        return self.head(torch.bmm(likeness, self.value(x)).mean(1))


# A parameter has one field an axis, so that all experts lose the same hidden units; the experts themselves stay, for
# their gates are a softmax.
@example("experts 4, back 5, embed.weight 5", tokens, held={"gate.weight[0]": "softmax"})
class Experts(nn.Module):
    """A mixture of three experts, all of them applied, held in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 5, 4) / 2)
        self.back = nn.Parameter(torch.randn(3, 4, 5) / 2)
        self.embed, self.gate, self.head = nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        share = self.gate(x).softmax(-1)
        hidden = F.relu(torch.einsum("bnc,ech->bneh", x, self.experts))
        return self.head((torch.einsum("bneh,ehc->bnec", hidden, self.back) * share.unsqueeze(-1)).sum(2).mean(1))


class ByConstant(nn.Module):
    """Channels in another order, which a buffer says."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.read, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3), nn.Linear(5, 3)
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))

    def move(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.read(self.move(F.relu(self.conv(x))))).mean((2, 3)))


@example("conv.weight 6, read.weight 5")
class Indexed(ByConstant):
    def move(self, x: Tensor) -> Tensor:
        return x[:, self.order]


@example("conv.weight 6, read.weight 5")
class IndexSelected(ByConstant):
    def move(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.order)


@example("conv.weight 6, read.weight 5")
class Gathered(ByConstant):
    def move(self, x: Tensor) -> Tensor:
        index = self.order.view(1, -1, 1, 1).expand(x.shape[0], -1, *x.shape[2:])
        return torch.gather(x, 1, index)


# 0, 4 and 2 change places in a cycle, and so do 1, 3 and 5: each cycle meets itself, and leaves whole.
@example("conv.weight 2, read.weight 5")
class IndexedOnto(ByConstant):
    def __init__(self) -> None:
        super().__init__()
        self.order = torch.tensor([4, 3, 0, 5, 2, 1])

    def move(self, x: Tensor) -> Tensor:
        return x + x[:, self.order]


@example("conv.weight 6, read.weight 5")
class IndexedTwice(ByConstant):
    def __init__(self) -> None:
        super().__init__()
        self.order = torch.tensor([3, 0, 5, 1, 4, 2, 2, 4, 1, 5, 0, 3])
        self.read = nn.Conv2d(12, 5, 3)

    def move(self, x: Tensor) -> Tensor:
        return x[:, self.order]
