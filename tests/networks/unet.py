"""A UNet with attention, as diffusion models use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks.examples import example, images

NARROW, WIDE, TIME, HEADS = 8, 12, 10, 2


class ResidualBlock(nn.Module):
    """Two convolutions behind GroupNorm and SiLU; the time is added to every channel in between."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(inputs // 4, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(TIME, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(outputs // 4, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class PixelAttention(nn.Module):
    """Attention over the pixels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(channels // 4, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.group_norm(x).view(batch, channels, height * width).transpose(1, 2)
        q, k, v = (
            layer(y).view(batch, -1, HEADS, channels // HEADS).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        return x + self.to_out(y).transpose(-1, -2).reshape(batch, channels, height, width)


def noisy_images(batch: int) -> tuple[Tensor, ...]:
    """Images and the steps of diffusion that they are at."""
    return images(batch), torch.arange(batch) * 7


# A norm has groups of four channels, which keep equally many: so do the parts of what is normalised together, as
# conv_in (with the rest of the skip) and upsample are in up2. What up1 normalises is twice the trunk in the middle.
# Nothing normalises what up1 returns before upsample reads it. A frequency leaves with its sine and its cosine.
WITHOUT_ATTENTION = (
    "time_embed.0.weight 10, time_embed.2.weight 10, conv_in.weight 16/4, down1.conv1.weight 8/2, downsample.weight 8/2"
    ", down2.conv1.weight 12/3, down2.conv2.weight 12/3, mid1.conv1.weight 12/3, {attention}, mid2.conv1.weight 12/3"
    ", up1.conv1.weight 12/3, up1.conv2.weight 12, up2.conv1.weight 8/2, up2.conv2.weight 8/2, frequencies 4"
)


@example(
    WITHOUT_ATTENTION.format(attention="attention.to_q.weight 12/2, attention.to_v.weight 12/2"),
    noisy_images,
    heads=WITHOUT_ATTENTION.format(attention="attention.to_q.weight 2"),
)
class UNet(nn.Module):
    """Down and up again: the skips are concatenated, the time is added in every block."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-math.log(100.0) * torch.arange(4) / 4), persistent=False)
        self.time_embed = nn.Sequential(nn.Linear(8, TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        self.conv_in = nn.Conv2d(3, NARROW, 3, padding=1)
        self.down1, self.downsample = ResidualBlock(NARROW, NARROW), nn.Conv2d(NARROW, NARROW, 3, 2, 1)
        self.down2, self.mid1 = ResidualBlock(NARROW, WIDE), ResidualBlock(WIDE, WIDE)
        self.attention = PixelAttention(WIDE)
        self.mid2, self.up1 = ResidualBlock(WIDE, WIDE), ResidualBlock(WIDE + WIDE, WIDE)
        self.upsample, self.up2 = nn.Conv2d(WIDE, NARROW, 3, padding=1), ResidualBlock(NARROW + NARROW, NARROW)
        self.norm_out, self.conv_out = nn.GroupNorm(NARROW // 4, NARROW), nn.Conv2d(NARROW, 3, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        angles = timestep[:, None].float() * self.frequencies[None]
        time = self.time_embed(torch.cat([angles.sin(), angles.cos()], -1))
        x1 = self.down1(self.conv_in(sample), time)
        x2 = self.down2(self.downsample(x1), time)
        y = self.mid2(self.attention(self.mid1(x2, time)), time)
        y = self.up1(torch.cat([y, x2], 1), time)
        y = self.upsample(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = self.up2(torch.cat([y, x1], 1), time)
        return self.conv_out(F.silu(self.norm_out(y)))
