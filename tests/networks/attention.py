"""Attention in its spellings: by default every head loses the same number of dimensions, or else whole heads go."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.examples import example, pixels, tokens

HEADS, SIZE = 2, 4  # heads, and dimensions of each
WIDTH = HEADS * SIZE


class Block(nn.Module):
    """Attention in a residual block over tokens of six features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.head = nn.Linear(5, 6), nn.Linear(WIDTH, 6), nn.Linear(6, 3)

    def attend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.out(self.attend(x))).mean(1))


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """Tokens of heads side by side, with an axis of heads before the tokens."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """The inverse."""
    return x.transpose(1, 2).flatten(2)


# Queries and keys meet in each head; values are apart. Each fills every head equally.
SEPARATE = "embed.weight 6, q.weight 8/2, v.weight 8/2"
WHOLE = "embed.weight 6, q.weight 2"


class Projected(Block):
    """Queries, keys and values from layers of their own."""

    def __init__(self, groups: int = HEADS) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, WIDTH), nn.Linear(6, groups * SIZE), nn.Linear(6, groups * SIZE)


@example(SEPARATE, tokens, heads=WHOLE)
class Attention(Projected):
    """scaled_dot_product_attention, whose scale depends on the size of a head."""

    def attend(self, x: Tensor) -> Tensor:
        return merged(F.scaled_dot_product_attention(split(self.q(x)), split(self.k(x)), split(self.v(x))))


@example(SEPARATE, tokens, heads=WHOLE)
class AttentionByHand(Projected):
    """matmul, a scale that is a number, a causal mask, softmax, matmul."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(6, 6, dtype=torch.bool).triu(1))

    def attend(self, x: Tensor) -> Tensor:
        scores = split(self.q(x)) @ split(self.k(x)).transpose(-2, -1) / SIZE**0.5
        return merged(scores.masked_fill(self.mask, float("-inf")).softmax(-1) @ split(self.v(x)))


@example(SEPARATE, tokens, heads=WHOLE)
class AttentionByEinsum(Projected):
    """Einsum with the heads behind the tokens."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (HEADS, SIZE)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q * SIZE**-0.5, k).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2)


# A removed dimension adds nothing to the length of a query.
@example(SEPARATE, tokens, heads="scale 2, embed.weight 6")
class CosineAttention(Projected):
    """Queries and keys of length one, and a scale for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([[[2.0]], [[3.0]]]))

    def attend(self, x: Tensor) -> Tensor:
        q, k = F.normalize(split(self.q(x)), dim=-1), F.normalize(split(self.k(x)), dim=-1)
        return merged((q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ split(self.v(x)))


# elu(0) + 1 is one: a removed dimension of queries and keys would not vanish, but a head does, with its values.
@example(WHOLE, tokens, heads=WHOLE)
class LinearAttention(Projected):
    """Attention without a softmax, by a positive map of queries and keys."""

    def attend(self, x: Tensor) -> Tensor:
        q, k = F.elu(split(self.q(x))) + 1, F.elu(split(self.k(x))) + 1
        context = k.transpose(-2, -1) @ split(self.v(x))
        total = q @ k.sum(2).unsqueeze(-1)
        return merged(q @ context / total)


# Three rows of two heads: all six keep equally many. Queries and keys are one, which leaves four.
@example("embed.weight 6, qkv.weight 16/4", tokens, heads="embed.weight 6, qkv.weight 2")
class FusedAttention(Block):
    """Queries, keys and values from one layer, as vision transformers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 3 * WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, WIDTH)


# Chunks, unlike rows, need not stay equal: queries with keys are apart from values.
@example("embed.weight 6, qkv.weight#1 8/2, qkv.weight#2 8/2", tokens, heads="embed.weight 6, qkv.weight 2")
class ChunkedAttention(FusedAttention):
    """Queries, keys and values as chunks of one layer."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(part) for part in self.qkv(x).chunk(3, -1))
        return merged(F.scaled_dot_product_attention(q, k, v))


@example("embed.weight 8, mix.in_proj_weight 16/4", tokens, heads="embed.weight 8, mix.in_proj_weight 2", first=True)
@example(
    "embed.weight 8, mix.in_proj_weight 16/4",
    tokens,
    heads="embed.weight 8, mix.in_proj_weight 2",
    first=False,
    name="MultiheadAttentionOfSequences",
)
class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention, whose trunk is as wide as its heads together."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.embed, self.mix = nn.Linear(5, 8), nn.MultiheadAttention(8, HEADS, batch_first=first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = x if self.first else x.transpose(0, 1)
        y = self.mix(y, y, y, need_weights=not self.first)[0]
        return self.head((x + (y if self.first else y.transpose(0, 1))).mean(1))


class GroupedQueries(Block):
    """Four heads of queries for two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(16, 6)


# Two query heads read one head of keys and values: a dimension of it, or all of it, takes both with it.
@example(SEPARATE, tokens, heads=WHOLE)
class GroupedQueriesByOp(GroupedQueries):
    """The op itself knows of groups."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = split(self.q(x), 4), split(self.k(x)), split(self.v(x))
        return merged(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


@example(SEPARATE, tokens, heads=WHOLE)
class GroupedQueriesInterleaved(GroupedQueries):
    """Keys and values are repeated for the heads that read them."""

    def attend(self, x: Tensor) -> Tensor:
        k, v = (split(layer(x)).repeat_interleave(2, dim=1) for layer in (self.k, self.v))
        return merged(F.scaled_dot_product_attention(split(self.q(x), 4), k, v))


# One head of keys and values for all: by default its four dimensions; query heads leave one by one.
@example("embed.weight 6, q.weight 4, v.weight 4", tokens, heads="embed.weight 6, q.weight 2")
class MultiQuery(Projected):
    """One head of keys and values for all queries."""

    def __init__(self) -> None:
        super().__init__(groups=1)

    def attend(self, x: Tensor) -> Tensor:
        k, v = (split(layer(x), 1).expand(-1, HEADS, -1, -1) for layer in (self.k, self.v))
        return merged(F.scaled_dot_product_attention(split(self.q(x)), k, v))


def pairs(size: int) -> Tensor:
    """For each pair of positions in a window of `size` by `size`, the number of their difference."""
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    row, column = places[:, :, None] - places[:, None, :] + size - 1
    return row * (2 * size - 1) + column


# The table's columns are heads: they stay by default, and leave with their heads otherwise.
@example(
    "stem.weight 6, qkv.weight 16/4, up.weight 7",
    pixels,
    heads="table 2, stem.weight 6, up.weight 7",
    held={"table[0]": "", "table[1]": ""},
)
class ShiftedWindows(nn.Module):
    """A Swin block: windows of a rolled image, attention with a table of relative positions, an MLP."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("index", pairs(2))
        self.stem, self.norm1, self.norm2 = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).unsqueeze(0)
        scores = (qkv[0] * SIZE**-0.5) @ qkv[1].transpose(-2, -1) + bias
        return self.out((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))

    def windows(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        x = torch.roll(x, (-1, -1), (1, 2)).view(batch, height // 2, 2, width // 2, 2, channels)
        x = self.attend(x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels))
        x = x.view(batch, height // 2, width // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(batch, height, width, -1), (1, 1), (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.windows(self.norm1(x))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean((1, 2)))


# A pair of neighbours rotates by one angle, which all heads share; the table of angles gets narrower with them.
@example("embed.weight 6, q.weight 2, v.weight 8/2", tokens, heads=WHOLE)
class ComplexRotary(Projected):
    """Rotary positions as complex numbers."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("angles", torch.polar(torch.ones(6, 2), torch.arange(12.0).view(6, 2) / 5))

    def rotate(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.unflatten(-1, (SIZE // 2, 2))) * self.angles[:, None]
        return torch.view_as_real(turned).flatten(3).transpose(1, 2)

    def attend(self, x: Tensor) -> Tensor:
        q, k = (self.rotate(layer(x).view(*x.shape[:2], HEADS, SIZE)) for layer in (self.q, self.k))
        return merged(F.scaled_dot_product_attention(q, k, split(self.v(x))))


# The class token, the table of positions and the trunk are one width.
@example(
    "token 6, qkv.weight 16/4, up.weight 7",
    pixels,
    heads="token 6, qkv.weight 2, up.weight 7",
)
class Vision(nn.Module):
    """A vision transformer of one block; the class token is read."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 17, 6))
        self.patches, self.norm1, self.norm2 = nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.LayerNorm(6)
        self.qkv, self.out = nn.Linear(6, 3 * WIDTH), nn.Linear(WIDTH, 6)
        self.up, self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.norm1(x)).reshape(x.shape[0], 17, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(merged(F.scaled_dot_product_attention(q, k, v)))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x)))))[:, 0])
