"""The Hiera trunk: four stages of blocks with windowed attention, a few with global attention.

Source: arXiv 2306.00989, official `hieradet.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule, Part
from sam2_fast.model.layers import MLP, DropPath, linear_of, norm_of
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.lookups import LookedUp, watch
from sam2_fast.ops.hiera_block import HieraBlockWeights, hiera_block


class PatchEmbed(Part):
    """7 x 7 convolution of stride 4: pixels to tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """x: images [B, 3, S, S] -> [B, S / 4, S / 4, dim]."""
        # Channels last is three times as fast in oneDNN; the channels of a token are contiguous.
        return self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


class MultiScaleAttention(Part):
    """Attention of all tokens of a map, or of a window, to each other.

    q_pool: pools the queries, or None. Source: official `MultiScaleAttention`.
    """

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, q_pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.dim_out = dim_out
        self.num_heads = num_heads
        self.q_pool = q_pool
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, dim] -> [B, H, W, dim_out], or half the height and width with a pool."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.unbind(2)
        if self.q_pool is not None:
            q = do_pool(q.reshape(batch, height, width, -1), self.q_pool)
            height, width = q.shape[1:3]
            q = q.reshape(batch, height * width, self.num_heads, -1)
        heads = (tokens.transpose(1, 2) for tokens in (q, k, v))
        output = F.scaled_dot_product_attention(*heads).transpose(1, 2)
        return self.proj(output.reshape(batch, height, width, -1))


def do_pool(x: Tensor, pool: nn.Module | None, norm: nn.Module | None = None) -> Tensor:
    """x: [B, H, W, C] pooled by a module for [B, C, H, W], then normalised; None: x itself."""
    if pool is None:
        return x
    x = pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return x if norm is None else norm(x)


class MultiScaleBlock(OpModule[HieraBlockWeights]):
    """Pre-norm attention and MLP (official `MultiScaleBlock`).

    window_size: tokens of a side of a window; 0: attention over the whole map.
    q_stride: (2, 2): queries and the shortcut are max-pooled; None: they are not.
    drop_path: probability with which a residual branch is dropped in training mode.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        window_size: int,
        q_stride: tuple[int, int] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.dim_out = dim_out
        self.window_size = window_size
        self.q_stride = q_stride
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.pool = None
        if q_stride is not None:
            self.pool = nn.MaxPool2d(kernel_size=q_stride, stride=q_stride)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, self.pool)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, num_layers=2, activation=nn.GELU)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self._fusion = Fusion({"": self})

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
            linear_of(self.proj) if self.dim != self.dim_out else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, dim] -> [B, H', W', dim_out], with H' = H / 2 if queries are pooled."""
        weights = self.op_weights(x)
        return self._call_parts(x) if weights is None else self.run_op(x, weights)

    def run_op(self, x: Tensor, weights: HieraBlockWeights, overwrite: bool = False) -> Tensor:
        """`forward` by the op.

        weights: from `op_weights`. overwrite: the result may be written to the memory of x.
        """
        heads, pooled = self.attn.num_heads, self.pool is not None
        eps = self.norm1.eps
        return hiera_block(x, weights, heads, self.window_size, pooled, eps, overwrite=overwrite)

    def _call_parts(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm1(x)
        if self.dim != self.dim_out:
            shortcut = do_pool(self.proj(x), self.pool)
        window = self.window_size
        if window > 0:
            height, width = x.shape[1:3]
            windows, padded = window_partition(x, window)
            x = self.attn(windows)
            if self.q_stride is not None:
                window //= self.q_stride[0]
                height, width = shortcut.shape[1:3]
                padded = height + -height % window, width + -width % window
            x = window_unpartition(x, window, padded, (height, width))
        else:
            x = self.attn(x)
        x = shortcut + self.drop_path(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """[B, H, W, C] -> [B * windows, window_size, window_size, C]; the map is padded with zeros.

    Also returns the height and the width of the padded map.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    padded = x.shape[1], x.shape[2]
    rows, columns = padded[0] // window_size, padded[1] // window_size
    x = x.unflatten(2, (columns, window_size)).unflatten(1, (rows, window_size))
    return x.transpose(2, 3).flatten(0, 2), padded


def window_unpartition(
    windows: Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]
) -> Tensor:
    """The inverse of `window_partition`: a map [B, *hw, C].

    pad_hw: height and width of the padded map.
    """
    rows, columns = pad_hw[0] // window_size, pad_hw[1] // window_size
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    x = x.reshape(x.shape[0], rows * window_size, columns * window_size, -1)
    return x[:, : hw[0], : hw[1]].contiguous()


watch(__name__, LookedUp(globals(), "F", "do_pool", "window_partition", "window_unpartition"))


class Hiera(Part):
    """The trunk; it returns the last feature map of each stage."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.embed_dim
        heads = config.num_heads
        window = config.windows[0]
        depth = sum(config.stages)
        self.window_spec = config.windows
        self.q_stride = (2, 2)
        self.stage_ends = [sum(config.stages[: i + 1]) - 1 for i in range(4)]
        self.q_pool_blocks = [end + 1 for end in self.stage_ends[:3]]
        self.return_interm_layers = True
        self.global_att_blocks = list(config.global_blocks)
        self.window_pos_embed_bkg_spatial_size = list(config.pos_grid)
        self.channel_list = list(reversed(config.stage_dims))
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *config.pos_grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dim, window, window))
        self._position: Cache[Tensor] = Cache()
        blocks = []
        stage = 0
        for i in range(depth):
            drop_rate = config.drop_path_rate * i / max(depth - 1, 1)
            # The first block of a stage still has the window of the previous stage.
            size = 0 if i in config.global_blocks else config.windows[stage]
            pooled = i in self.q_pool_blocks
            if pooled:
                stage += 1
                heads *= 2
            dim_out = dim * 2 if pooled else dim
            stride = self.q_stride if pooled else None
            blocks.append(MultiScaleBlock(dim, dim_out, heads, size, stride, drop_rate))
            dim = dim_out
        self.blocks = nn.ModuleList(blocks)
        self._fusion: Fusion[HieraBlockWeights] = Fusion({"": self})

    def _get_pos_embed(self, hw: tuple[int, int]) -> Tensor:
        """[1, *hw, dim]: a resized coarse grid, plus one tile repeated in all windows."""
        height, width = hw

        def make() -> Tensor:
            coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
            tile = self.pos_embed_window
            tiles = tile.tile([1, 1, height // tile.shape[2], width // tile.shape[3]])
            return (coarse + tiles).permute(0, 2, 3, 1).contiguous()

        return self._position.get(make, (self.pos_embed, self.pos_embed_window), height, width)

    def get_num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def get_layer_id(self, layer_name: str) -> int:
        """The depth of a parameter, for learning rates by layer: blocks from 1, 0 before them."""
        if "rel_pos" in layer_name:
            return self.get_num_layers() + 1
        if "pos_embed" in layer_name or "patch_embed" in layer_name:
            return 0
        if "blocks" in layer_name:
            return int(layer_name.partition("blocks")[2].split(".")[1]) + 1
        return self.get_num_layers() + 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Hiera:
        self._position.clear()
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: images [B, 3, S, S] -> four maps [B, C_i, S / (4 * 2^i), S / (4 * 2^i)].

        The maps are channels_last in memory.
        """
        x = self.patch_embed(x)
        x = x + self._get_pos_embed((x.shape[1], x.shape[2]))
        maps = []
        examination = self._fusion.examined({"": self}, x)
        reusable = True  # x is neither a result nor known to a hook
        for i, block in enumerate(self.blocks):
            weights = None
            if isinstance(block, MultiScaleBlock):
                weights = block.op_weights(x, examination=examination)
                if weights is not None:
                    x = block.run_op(x, weights, overwrite=reusable)
            if weights is None:
                x = block(x)
            reusable = weights is not None and i not in self.stage_ends
            last = i == self.stage_ends[-1]
            if last or (i in self.stage_ends and self.return_interm_layers):
                maps.append(x.permute(0, 3, 1, 2))
        return maps
