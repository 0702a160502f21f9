"""Memory attention: the features of a frame attend to themselves, then to the memories.

Source: official `memory_attention.py`.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.layers import OpModule, Table, linear_of, norm_of
from sam2_fast.ops.core.weights import Linear
from sam2_fast.ops.memory_attention import Memories, memory_attention
from sam2_fast.ops.memory_attention.table import MemoryTable
from sam2_fast.ops.memory_attention.triton_kernels import memory_attention_at
from sam2_fast.ops.memory_attention.weights import MemoryAttentionWeights, MemoryLayerWeights
from sam2_fast.ops.rope_attention import rope_table


class RopeAttention(nn.Module):
    """The projections of an attention with one head and rotary position encoding."""

    def __init__(self, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(kv_dim, dim)
        self.v_proj = nn.Linear(kv_dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def projections(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The layers for queries, keys, values and the output."""
        q, k, v, out = map(linear_of, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        return q, k, v, out


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memories, feed-forward network; all pre-norm.

    Positions of memories are added to the keys only.
    """

    def __init__(self, dim: int, memory_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = RopeAttention(dim, dim)
        self.cross_attn_image = RopeAttention(dim, memory_dim)
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def gather_weights(self) -> MemoryLayerWeights:
        """The weights of one layer of `ops.memory_attention`."""
        return MemoryLayerWeights(
            norm_of(self.norm1),
            *self.self_attn.projections(),
            norm_of(self.norm2),
            *self.cross_attn_image.projections(),
            norm_of(self.norm3),
            linear_of(self.linear1),
            linear_of(self.linear2),
        )


class MemoryAttention(OpModule[MemoryAttentionWeights]):
    """The weights of all layers and the final norm; `ops.memory_attention` computes."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim = config.hidden_dim
        side = config.grid
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(dim, config.memory_dim, config.memory_ffn_dim)
            for _ in range(config.memory_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.rope = Table(partial(rope_table, dim, side))

    def gather_weights(self) -> MemoryAttentionWeights:
        """The weights of `ops.memory_attention`."""
        layers = tuple(layer.gather_weights() for layer in self.layers)  # type: ignore[operator]
        return MemoryAttentionWeights(layers, norm_of(self.norm))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memories: Memories | MemoryTable,
        temporal: Tensor,
        memory_position: Tensor,
    ) -> Tensor:
        """Features fused with memories, [B, N, dim].

        x: [1 or B, N, dim]. position: [1, N, dim].
        temporal: [T, memory_dim]. memory_position: [N, memory_dim].
        If all objects of a frame share x [1, N, dim], it is computed once up to the first
        attention to memories.
        """
        x = x + 0.1 * position
        weights = self.weights()
        table = self.rope()
        if isinstance(memories, MemoryTable):
            return memory_attention_at(x, weights, table, memories, temporal, memory_position)
        return memory_attention(x, weights, table, memories, temporal, memory_position)
