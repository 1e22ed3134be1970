"""Language models as libraries write them: a decoder like Llama's and an encoder like BERT's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.examples import example, words
from tests.networks.normalisations import RootMeanSquare

WIDTH, INNER, SIZE, HEADS, KEYS, WORDS = 12, 10, 6, 4, 2, 11


class Rotary(nn.Module):
    """Cosines and sines of the angles of every position, for both halves of a head."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 10.0 ** (-torch.arange(0, SIZE, 2) / SIZE), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.frequencies[None]
        angles = torch.cat((angles, angles), -1)
        return angles.cos()[None, None], angles.sin()[None, None]


def rotate_half(x: Tensor) -> Tensor:
    """The halves of each head change places, one of them negated."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), -1)


def repeat_heads(x: Tensor, times: int) -> Tensor:
    """Each head of keys and values for every head of queries that reads it."""
    batch, heads, length, size = x.shape
    x = x[:, :, None].expand(batch, heads, times, length, size)
    return x.reshape(batch, heads * times, length, size)


class GroupedAttention(nn.Module):
    """Causal attention with rotary positions and fewer heads of keys and values than of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(WIDTH, HEADS * SIZE, False), nn.Linear(WIDTH, KEYS * SIZE, False)
        self.v_proj, self.o_proj = nn.Linear(WIDTH, KEYS * SIZE, False), nn.Linear(HEADS * SIZE, WIDTH, False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            layer(x).view(batch, length, -1, SIZE).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = (repeat_heads(part, HEADS // KEYS) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class DecoderLayer(nn.Module):
    """Attention and a gated MLP, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = GroupedAttention()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, False), nn.Linear(WIDTH, INNER, False)
        self.down_proj = nn.Linear(INNER, WIDTH, False)
        self.input_layernorm, self.post_attention_layernorm = RootMeanSquare(WIDTH), RootMeanSquare(WIDTH)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


def decoder(layers: int = 2, heads: bool = False) -> str:
    """The groups: the trunk; in each layer what queries and keys share, values, and the inner width of the MLP.

    An angle rotates one dimension of each half, in every head: with one table for all layers and heads, the pairs of
    all queries and keys are the same `SIZE / 2` units. Values are blocks of their own in each head.
    """
    found = [f"embed_tokens.weight {WIDTH}"]
    for layer in range(layers):
        attention = f"layers.{layer}.self_attn"
        if heads:
            found.append(f"{attention}.q_proj.weight {KEYS}")
        elif layer == 0:
            found += [f"{attention}.q_proj.weight {SIZE // 2}", f"{attention}.v_proj.weight {KEYS * SIZE}/{KEYS}"]
        else:
            found.append(f"{attention}.v_proj.weight {KEYS * SIZE}/{KEYS}")
        found.append(f"layers.{layer}.gate_proj.weight {INNER}")
    return ", ".join(found)


@example(decoder(), words, heads=decoder(heads=True), name="Llama", tied=False)
@example(decoder(), words, heads=decoder(heads=True), name="LlamaTied", tied=True)
class Decoder(nn.Module):
    """A language model like Llama."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(2))
        self.norm, self.rotary_emb, self.lm_head = RootMeanSquare(WIDTH), Rotary(), nn.Linear(WIDTH, WORDS, False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            x = layer(x, cos, sin)
        return {"logits": self.lm_head(self.norm(x))}


class Embeddings(nn.Module):
    """Words, positions and segments, added and normalised."""

    position_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.position_embeddings, self.token_type_embeddings = nn.Embedding(8, WIDTH), nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(8).expand((1, -1)))

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.LayerNorm(x + self.position_embeddings(self.position_ids[:, : input_ids.shape[1]]))


class SelfAttention(nn.Module):
    """Attention with layers for queries, keys and values, and a mask that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, HEADS * SIZE) for _ in range(3))
        self.dense = nn.Linear(HEADS * SIZE, WIDTH)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(x.size()[:-1] + (HEADS, SIZE)).permute(0, 2, 1, 3)  # noqa: RUF005 (torch.Size as libraries add it)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self.transpose_for_scores(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(SIZE)
        context = torch.matmul(F.dropout((scores + mask).softmax(-1), 0.1, self.training), value)
        context = context.permute(0, 2, 1, 3).contiguous()
        return self.dense(context.view(context.size()[:-2] + (HEADS * SIZE,)))  # noqa: RUF005


class EncoderLayer(nn.Module):
    """Attention and an MLP, each beside a shortcut and before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SelfAttention()
        self.intermediate, self.output = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


def sentences(batch: int) -> tuple[Tensor, ...]:
    """Words, segments, and which words are there."""
    (ids,) = words(batch)
    present = torch.ones(batch, 6)
    present[0, 4:] = 0
    return ids, (torch.arange(6) > 2).long().expand(batch, 6).contiguous(), present


def encoder(layers: int = 2, heads: bool = False) -> str:
    """The groups: the trunk; in each layer queries with keys, values, the MLP; the pooler."""
    found = [f"embeddings.word_embeddings.weight {WIDTH}"]
    for layer in range(layers):
        attention = f"layer.{layer}.attention"
        blocks = [f"{attention}.{name}.weight {HEADS * SIZE}/{HEADS}" for name in ("query", "value")]
        found += [f"{attention}.query.weight {HEADS}"] if heads else blocks
        found.append(f"layer.{layer}.intermediate.weight {INNER}")
    return ", ".join([*found, f"pooler.weight {WIDTH}"])


@example(encoder(), sentences, heads=encoder(heads=True), name="Bert")
class Encoder(nn.Module):
    """A language model like BERT, which classifies by its first word."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.layer = Embeddings(), nn.ModuleList(EncoderLayer() for _ in range(2))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(torch.float32).min
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layer:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))
