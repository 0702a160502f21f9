"""The Hiera trunk: four stages of blocks with windowed attention, a few with global attention.

Source: arXiv 2306.00989, official `hieradet.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import MLP, OpModule, linear_of, norm_of
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.hiera_block import HieraBlockWeights, hiera_block


class PatchEmbed(nn.Module):
    """7 x 7 convolution of stride 4: pixels to tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        """images: [B, 3, S, S] -> [B, S / 4, S / 4, dim]."""
        # Channels last is three times as fast in oneDNN; the channels of a token are contiguous.
        return self.proj(images.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """The projections of a block's attention; `ops.hiera_block` computes with them."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)


class Block(OpModule[HieraBlockWeights]):
    """Pre-norm attention and MLP.

    If `dim_out` differs from `dim`, queries and the shortcut are max-pooled 2 x 2.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.pool = dim != dim_out
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, dim_out)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, num_layers=2, activation=nn.GELU)
        if self.pool:
            self.proj = nn.Linear(dim, dim_out)

    def gather_weights(self) -> HieraBlockWeights:
        """The weights of `ops.hiera_block`."""
        fc1, fc2 = self.mlp.layers
        return HieraBlockWeights(
            norm_of(self.norm1),
            linear_of(self.attn.qkv),
            linear_of(self.attn.proj),
            norm_of(self.norm2),
            linear_of(fc1),
            linear_of(fc2),
            linear_of(self.proj) if self.pool else None,
        )

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """x: [B, H, W, dim] -> [B, H', W', dim_out], with H' = H / 2 if queries are pooled.

        overwrite: the result may be written to the memory of x.
        """
        return hiera_block(
            x,
            self.weights(),
            self.num_heads,
            self.window,
            self.pool,
            self.norm1.eps,
            overwrite=overwrite,
        )


class Hiera(nn.Module):
    """The trunk; it returns the last feature map of each stage."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.embed_dim
        heads = config.num_heads
        window = config.windows[0]
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *config.pos_grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dim, window, window))
        self._position: Cache[Tensor] = Cache()
        ends = [sum(config.stages[: i + 1]) - 1 for i in range(4)]
        self.stage_ends = ends
        blocks = []
        stage = 0
        for i in range(sum(config.stages)):
            # The first block of a stage still has the window of the previous stage.
            size = 0 if i in config.global_blocks else config.windows[stage]
            first = i - 1 in ends
            if first:
                stage += 1
                heads *= 2
            dim_out = dim * 2 if first else dim
            blocks.append(Block(dim, dim_out, heads, size))
            dim = dim_out
        self.blocks = nn.ModuleList(blocks)

    def position(self, height: int, width: int) -> Tensor:
        """[1, height, width, dim]: a resized coarse grid, plus one tile repeated in all windows."""

        def make() -> Tensor:
            coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
            tile = self.pos_embed_window
            tiles = tile.tile([1, 1, height // tile.shape[2], width // tile.shape[3]])
            return (coarse + tiles).permute(0, 2, 3, 1).contiguous()

        return self._position.get(make, (self.pos_embed, self.pos_embed_window), height, width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Hiera:
        self._position.clear()
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: [B, 3, S, S] -> four maps [B, C_i, S / (4 * 2^i), S / (4 * 2^i)].

        The maps are channels_last in memory.
        """
        x = self.patch_embed(images)
        x = x + self.position(x.shape[1], x.shape[2])
        maps = []
        # A forward hook may keep the tensors that it receives.
        hooked = any(block._forward_hooks for block in self.blocks)
        for i, block in enumerate(self.blocks):
            # The maps that are returned must not be overwritten.
            x = block(x, overwrite=not hooked and i - 1 not in self.stage_ends)
            if i in self.stage_ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps
