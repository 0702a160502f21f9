"""The Hiera trunk: four stages of blocks with windowed attention, a few with global attention.

Source: arXiv 2306.00989, official `hieradet.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.files.pickle_file import (
    MAX_HEADER_BYTES,
    WeightsFileError,
    check_regular,
    read_pickle_file,
)
from sam2_fast.files.reasons import reason_of
from sam2_fast.model.fusion import Fusion, OpModule, Part, unusual_setting
from sam2_fast.model.layers import MLP, DropPath, linear_of, norm_of
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.lookups import LookedUp, watch
from sam2_fast.ops.hiera_block import HieraBlockWeights, hiera_block

_log = logging.getLogger(__name__)


class PatchEmbed(Part):
    """A convolution, pixels to tokens: 7 x 7 of stride 4 by default."""

    def __init__(
        self,
        kernel_size: Sequence[int] = (7, 7),
        stride: Sequence[int] = (4, 4),
        padding: Sequence[int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            in_chans, embed_dim, _pair(kernel_size), _pair(stride), _pair(padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: images [B, in_chans, S, S] -> [B, S / 4, S / 4, embed_dim]."""
        # Channels last is three times as fast in oneDNN; the channels of a token are contiguous.
        return self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


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

    mlp_ratio: hidden channels of the MLP, in output channels.
    drop_path: probability with which a residual branch is dropped in training mode.
    norm_layer: of a number of channels, or the name of a class in torch.nn, with eps 1e-6.
    q_stride: (2, 2): queries and the shortcut are max-pooled; None: they are not.
    window_size: tokens of a side of a window; 0: attention over the whole map.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_layer: Callable[[int], nn.Module] | str = "LayerNorm",
        q_stride: Sequence[int] | None = None,
        act_layer: type[nn.Module] = nn.GELU,
        window_size: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(norm_layer, str):
            norm_layer = partial(getattr(nn, norm_layer), eps=1e-6)
        self.dim = dim
        self.dim_out = dim_out
        self.window_size = window_size
        self.q_stride = _pair(q_stride) if q_stride else None
        self.norm1 = norm_layer(dim)
        self.pool = None
        if self.q_stride is not None:
            self.pool = nn.MaxPool2d(kernel_size=self.q_stride, stride=self.q_stride)
        self.attn = MultiScaleAttention(dim, dim_out, num_heads, self.pool)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim_out)
        self.mlp = MLP(dim_out, int(dim_out * mlp_ratio), dim_out, 2, act_layer)
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self._fusion = Fusion({"": self})

    def reason_against_op(self) -> str | None:
        """The op has layer norms of one eps, GELU, and pools 2 x 2 if channels are added."""
        pooled = self.dim != self.dim_out
        return unusual_setting(
            norm_layer=((type(self.norm1), type(self.norm2)), (nn.LayerNorm, nn.LayerNorm)),
            eps=(getattr(self.norm2, "eps", None), getattr(self.norm1, "eps", None)),
            norm_bias=(getattr(self.norm1, "bias", None) is not None, True),
            act_layer=(type(self.mlp.act), nn.GELU),
            approximate=(getattr(self.mlp.act, "approximate", None), "none"),
            q_stride=(self.q_stride, (2, 2) if pooled else None),
        )

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
        eps = cast(nn.LayerNorm, self.norm1).eps
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
    """The trunk; it returns the last feature map of each stage.

    embed_dim, num_heads: channels and heads of the first stage; a later stage has dim_mul and
        head_mul times as many. stages: blocks of each stage.
    drop_path_rate: probability of dropping a branch in the last block, in training mode.
    q_pool: how many stages pool their queries at first, by q_stride.
    window_pos_embed_bkg_spatial_size: the grid of positions that is resized to the map, tokens.
    window_spec: windows of each stage, tokens. global_att_blocks: blocks without windows.
    weights_path: a `.pt` file with some or all weights of the trunk, or None. Raises
        FileNotFoundError, or ValueError for another file.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        num_heads: int = 1,
        drop_path_rate: float = 0.0,
        q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2),
        stages: Sequence[int] = (2, 3, 16, 3),
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        window_pos_embed_bkg_spatial_size: Sequence[int] = (14, 14),
        window_spec: Sequence[int] = (8, 4, 14, 7),
        global_att_blocks: Sequence[int] | None = (12, 16, 20),
        weights_path: str | Path | None = None,
        return_interm_layers: bool = True,
    ) -> None:
        super().__init__()
        if len(stages) != len(window_spec):
            raise ValueError(
                f"window_spec: expected {len(stages)} windows, one for each of the stages "
                f"{tuple(stages)}, got {tuple(window_spec)}"
            )
        if not 0 <= q_pool < len(stages):
            raise ValueError(f"q_pool: expected 0 to {len(stages) - 1} stages, got {q_pool}")
        depth = sum(stages)
        self.window_spec = tuple(window_spec)
        self.q_stride = _pair(q_stride)
        self.stage_ends = [end - 1 for end in accumulate(stages)]
        self.q_pool_blocks = [end + 1 for end in self.stage_ends[:-1]][:q_pool]
        self.return_interm_layers = return_interm_layers
        self.global_att_blocks = list(global_att_blocks or ())
        self.window_pos_embed_bkg_spatial_size = list(window_pos_embed_bkg_spatial_size)
        self.patch_embed = PatchEmbed(embed_dim=embed_dim)
        grid = self.window_pos_embed_bkg_spatial_size
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *grid))
        window = self.window_spec[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, window, window))
        self._position: Cache[Tensor] = Cache()
        self.blocks = nn.ModuleList()
        stage = 0
        for i in range(depth):
            # The first block of a stage still has the window of the previous stage.
            size = 0 if i in self.global_att_blocks else self.window_spec[stage]
            dim_out = embed_dim
            if i - 1 in self.stage_ends:
                stage += 1
                num_heads = int(num_heads * head_mul)
                dim_out = int(embed_dim * dim_mul)
            block = MultiScaleBlock(
                embed_dim,
                dim_out,
                num_heads,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                q_stride=self.q_stride if i in self.q_pool_blocks else None,
                window_size=size,
            )
            self.blocks.append(block)
            embed_dim = dim_out
        ends = self.stage_ends if return_interm_layers else self.stage_ends[-1:]
        self.channel_list = [self.blocks[i].dim_out for i in reversed(ends)]
        self._fusion: Fusion[HieraBlockWeights] = Fusion({"": self})
        if weights_path is not None:
            state = _read_weights(Path(weights_path))
            _log.info("weights of the trunk: %s", self.load_state_dict(state, strict=False))

    @classmethod
    def from_config(cls, config: Sam2Config) -> Hiera:
        """The trunk of an architecture."""
        return cls(
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            drop_path_rate=config.drop_path_rate,
            stages=config.stages,
            window_pos_embed_bkg_spatial_size=config.pos_grid,
            window_spec=config.windows,
            global_att_blocks=config.global_blocks,
        )

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


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        check_regular(path)
        state = read_pickle_file(path, MAX_HEADER_BYTES)
        if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
            raise WeightsFileError(f"expected a table of tensors, got {type(state).__name__}")
        return state
    except WeightsFileError as error:
        raise ValueError(f"weights_path: checkpoint {path}: {reason_of(error)}") from error
