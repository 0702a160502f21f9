"""Memory attention: the frame's features attend to themselves, then to the memories (official
`memory_attention.py`).
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
    """The projections around `ops.rope_attention`; one head."""

    def __init__(self, dim: int, kv_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(kv_dim, dim)
        self.v_proj = nn.Linear(kv_dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def projections(self) -> tuple[Linear, Linear, Linear, Linear]:
        """Of queries, keys and values, and of the output."""
        q, k, v, out = map(linear_of, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        return q, k, v, out


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memories (position added to the keys only), feed-forward;
    all pre-norm.
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
        """What `ops.memory_attention` reads of a layer."""
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
    """The stack of layers and its final norm; `ops.memory_attention` computes."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        dim, side = config.hidden_dim, config.grid
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(dim, config.memory_dim, config.memory_ffn_dim)
            for _ in range(config.memory_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.rope = Table(partial(rope_table, dim, side))

    def gather_weights(self) -> MemoryAttentionWeights:
        """What `ops.memory_attention` reads."""
        layers = tuple(layer.gather_weights() for layer in self.layers)  # type: ignore[operator]
        return MemoryAttentionWeights(layers, norm_of(self.norm))

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        memories: Memories | MemoryTable,
        temporal: Tensor,
        place: Tensor,
    ) -> Tensor:
        """x: [1 or B, N, dim]; position: [1, N, dim]; temporal: [T, memory_dim]; place: [N,
        memory_dim] -> [B, N, dim].

        Objects of one frame share x [1, N, dim]: until they meet their memories, in the first
            layer, they are computed once.
        """
        weights = self.weights()
        if isinstance(memories, MemoryTable):
            return memory_attention_at(
                x + 0.1 * position, weights, self.rope(), memories, temporal, place
            )
        return memory_attention(x + 0.1 * position, weights, self.rope(), memories, temporal, place)
