"""Steps that see the pixels of an image as a sequence: attention, recurrence, mixing of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.partition import Labels, Partition
from tests.networks.steps import Step, step

HEADS, SIZE, PIXELS = 2, 4, 4  # heads, dimensions of each, pixels along a side


class Tokens(Step):
    """A step on tokens, with a shortcut."""

    zero = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels

    def on_tokens(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.on_tokens(x.flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).unflatten(2, (PIXELS, PIXELS))


@step(*((kind, spelled) for kind in ("apart", "chunked", "rows") for spelled in ("op", "hand", "einsum")))
class Attention(Tokens):
    """Two heads; queries, keys and values from layers of their own, or from one, as chunks or as rows."""

    def __init__(self, channels: int, option: tuple[str, str]) -> None:
        super().__init__(channels)
        self.kind, self.spelled = option
        wide = HEADS * SIZE
        self.out = nn.Linear(wide, channels)
        if self.kind == "apart":
            self.layers = nn.ModuleList(nn.Linear(channels, wide) for _ in range(3))
        else:
            self.qkv = nn.Linear(channels, 3 * wide)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values: batch, tokens, heads, size."""
        if self.kind == "rows":
            return list(self.qkv(x).unflatten(2, (3, HEADS, SIZE)).unbind(2))
        flat = [layer(x) for layer in self.layers] if self.kind == "apart" else self.qkv(x).chunk(3, 2)
        return [part.unflatten(2, (HEADS, SIZE)) for part in flat]

    def on_tokens(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        if self.spelled == "einsum":
            shares = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
            return self.out(torch.einsum("bhqk,bkhd->bqhd", shares, v).flatten(2))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.spelled == "op":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(x.shape[0], -1, HEADS * SIZE))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        wide = HEADS * SIZE
        if self.kind == "apart":
            q, k, v = (self.through(found, f"layers.{index}", x) for index in range(3))
        else:
            made = self.through(found, "qkv", x)
            q, k, v = made[:wide], made[wide : 2 * wide], made[2 * wide :]
        if self.kind == "rows":
            found.lay(q + k + v, 3 * HEADS)
        found.join(q, k)
        found.lay(q, HEADS)
        found.lay(v, HEADS)
        return self.through(found, "out", v, x)


@step()
class Multihead(Tokens):
    """nn.MultiheadAttention."""

    def __init__(self, channels: int, _: None) -> None:
        super().__init__(channels)
        self.mix = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def on_tokens(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x, need_weights=False)[0]

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        wide = self.width
        made = found.make(f"{self.name}.mix.in_proj_weight", found.fresh(3 * wide))
        found.lie(f"{self.name}.mix.in_proj_weight", x, 1)
        q, k, v = made[:wide], made[wide : 2 * wide], made[2 * wide :]
        found.join(q, k)
        found.lay(made, 3)
        found.lay(q, HEADS)
        found.lay(v, HEADS)
        return self.through(found, "mix.out_proj", v, x)


@step(True, False)
class Grouped(Tokens):
    """Four heads of queries read two of keys and values."""

    def __init__(self, channels: int, by_op: bool) -> None:
        super().__init__(channels)
        self.by_op = by_op
        self.q, self.k, self.v = nn.Linear(channels, 16), nn.Linear(channels, 8), nn.Linear(channels, 8)
        self.out = nn.Linear(16, channels)

    def on_tokens(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (-1, SIZE)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if not self.by_op:
            k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.by_op)
        return self.out(y.transpose(1, 2).flatten(2))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        q, k, v = (self.through(found, layer, x) for layer in ("q", "k", "v"))
        for labels in (k, v):
            found.lay(labels, HEADS)
        found.join(q, twice(k))
        return self.through(found, "out", twice(v), x)


def twice(labels: Labels) -> Labels:
    """Each head, two times."""
    return [label for head in range(HEADS) for label in labels[head * SIZE : (head + 1) * SIZE] * 2]


@step("rotated", "complex")
class Rotary(Tokens):
    """Queries and keys turned by angles that both heads share, by halves or by pairs of dimensions."""

    angles: Tensor

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__(channels)
        self.kind = kind
        self.q, self.k, self.v = (nn.Linear(channels, HEADS * SIZE) for _ in range(3))
        self.out = nn.Linear(HEADS * SIZE, channels)
        self.register_buffer("angles", torch.arange(2.0 * PIXELS**2).view(-1, 1, 2) / 7)

    def turned(self, x: Tensor) -> Tensor:
        if self.kind == "complex":
            angles = torch.polar(torch.ones_like(self.angles), self.angles)
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * angles).flatten(-2)
        angles = torch.cat([self.angles, self.angles], -1)
        left, right = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

    def on_tokens(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (HEADS, SIZE)) for layer in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (self.turned(q), self.turned(k), v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        q, k, v = (self.through(found, layer, x) for layer in ("q", "k", "v"))
        for start in (0, SIZE):
            head = q[start : start + SIZE]
            left, right = (head[::2], head[1::2]) if self.kind == "complex" else (head[:2], head[2:])
            found.join(found.join(left, right), q[:4:2] if self.kind == "complex" else q[:2])
        found.lie(f"{self.name}.angles", q[:4:2] if self.kind == "complex" else q[:2], 2)
        found.join(q, k)
        found.lay(v, HEADS)
        return self.through(found, "out", v, x)


@step("lstm", "gru")
class Recurrent(Tokens):
    """A recurrent layer: a hidden unit is a row of every gate, and a column of the next step's."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__(channels)
        self.rnn = (nn.LSTM if kind == "lstm" else nn.GRU)(channels, SIZE, batch_first=True)
        self.gates, self.out = 4 if kind == "lstm" else 3, nn.Linear(SIZE, channels)

    def on_tokens(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        hidden = found.fresh(SIZE)
        found.make(f"{self.name}.rnn.weight_ih_l0", hidden * self.gates)
        found.lie(f"{self.name}.rnn.weight_ih_l0", x, 1)
        found.lie(f"{self.name}.rnn.weight_hh_l0", hidden, 1)
        return self.through(found, "out", hidden, x)


@step()
class Mix(Tokens):
    """A layer that mixes tokens, which stay; what it mixes through may go."""

    def __init__(self, channels: int, _: None) -> None:
        super().__init__(channels)
        self.up, self.down = nn.Linear(PIXELS**2, 5), nn.Linear(5, PIXELS**2)

    def on_tokens(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)

    def couple(self, found: Partition, x: Labels, zero: bool) -> Labels:
        self.read_by(found, "down", self.made_by(found, "up"))
        return x
