"""Memory attention: the frame's features attend to themselves, then to the memories (official `memory_attention.py`)."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import Table
from sam2_fast.ops.rope_attention import rope_attention, rope_table


class RopeAttention(nn.Module):
    """Projections around `ops.rope_attention`; one head."""

    def __init__(self, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(kv_dim, dim)
        self.v_proj = nn.Linear(kv_dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor, num_unrotated: int = 0) -> Tensor:
        """q: [1 or B, N, dim]; k, v: [B, K, kv_dim]; table: [2, N, dim / 2] -> [B, N, dim].

        Rows of the softmax sum to 1, so values narrower than their projection are attended to first and projected after.
        """
        q, k = self.q_proj(q).expand(k.shape[0], -1, -1), self.k_proj(k)
        if v.shape[-1] < q.shape[-1]:
            return self.out_proj(self.v_proj(rope_attention(q, k, v, table, num_unrotated)))
        return self.out_proj(rope_attention(q, k, self.v_proj(v), table, num_unrotated))


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memories (position added to the keys only), feed-forward; all pre-norm."""

    def __init__(self, dim: int, memory_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = RopeAttention(dim, dim)
        self.cross_attn_image = RopeAttention(dim, memory_dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor, keys: Tensor, table: Tensor, num_unrotated: int) -> Tensor:
        """x: [1 or B, N, dim]; memory, keys (memory + position): [B, K, memory_dim] -> [B, N, dim]."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed, table)
        x = x + self.cross_attn_image(self.norm2(x), keys, memory, table, num_unrotated)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class MemoryAttention(nn.Module):
    """The stack of layers and its final norm."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim, side = config.hidden_dim, config.grid
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(dim, config.memory_dim, config.memory_ffn_dim) for _ in range(config.memory_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.rope = Table(partial(rope_table, dim, side))

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor, num_unrotated: int) -> Tensor:
        """x: [1 or B, N, dim]; position: [1, N, dim]; memory, memory_position: [B, K, memory_dim] -> [B, N, dim].

        The last `num_unrotated` tokens of the memory are pointers. Objects of one frame share x [1, N, dim]: until they meet
        their memories, in the first layer, they are computed once.
        """
        x = x + 0.1 * position
        keys = memory + memory_position
        table = self.rope()
        for layer in self.layers:
            x = layer(x, memory, keys, table, num_unrotated)
        return self.norm(x)
