"""Memory attention: the features of a frame attend to themselves, then to the memories.

Source: official `memory_attention.py`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model.fusion import Fusion, OpModule, Part, unusual_setting
from sam2_fast.model.layers import (
    WithTables,
    copies_of,
    get_activation_fn,
    linear_of,
    norm_of,
)
from sam2_fast.model.rope_attention import RoPEAttention
from sam2_fast.ops.memory_attention import Memories, memory_attention
from sam2_fast.ops.memory_attention.table import MemoryTable
from sam2_fast.ops.memory_attention.triton_kernels import memory_attention_at
from sam2_fast.ops.memory_attention.weights import MemoryAttentionWeights, MemoryLayerWeights
from sam2_fast.ops.rope_attention import rope_table


class MemoryAttentionLayer(Part):
    """Self-attention, attention to the memories, feed-forward network; all pre-norm.

    activation: of the feed-forward network, "relu", "gelu" or "glu".
    dropout: probability of dropping a value in training mode.
    pos_enc_at_...: whether positions are added to the tokens of self-attention, and to the keys and
        queries of the attention to the memories; in the released models to its keys only.
    """

    def __init__(
        self,
        activation: str,
        cross_attention: RoPEAttention,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        pos_enc_at_attn: bool,
        pos_enc_at_cross_attn_keys: bool,
        pos_enc_at_cross_attn_queries: bool,
        self_attention: RoPEAttention,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.dim_feedforward = dim_feedforward
        self.dropout_value = dropout
        self.self_attn = self_attention
        self.cross_attn_image = cross_attention
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.dropout3 = nn.Dropout(dropout)
        self.activation_str = activation
        self.activation = get_activation_fn(activation)
        self.pos_enc_at_attn = pos_enc_at_attn
        self.pos_enc_at_cross_attn_queries = pos_enc_at_cross_attn_queries
        self.pos_enc_at_cross_attn_keys = pos_enc_at_cross_attn_keys

    @classmethod
    def from_config(cls, config: Sam2Config) -> MemoryAttentionLayer:
        """A layer of an architecture."""
        dim, size = config.hidden_dim, (config.grid, config.grid)
        own = RoPEAttention(dim, dropout=config.dropout, feat_sizes=size)
        cross = RoPEAttention(
            dim,
            dropout=config.dropout,
            kv_in_dim=config.memory_dim,
            rope_k_repeat=True,
            feat_sizes=size,
        )
        return cls(
            activation="relu",
            cross_attention=cross,
            d_model=dim,
            dim_feedforward=config.memory_ffn_dim,
            dropout=config.dropout,
            pos_enc_at_attn=False,
            pos_enc_at_cross_attn_keys=True,
            pos_enc_at_cross_attn_queries=False,
            self_attention=own,
        )

    def reason_against_op(self) -> str | None:
        """The op has rotary attentions, ReLU, and positions at the keys of the second attention."""
        rotary = RoPEAttention, RoPEAttention
        return unusual_setting(
            attentions=((type(self.self_attn), type(self.cross_attn_image)), rotary),
            activation=(self.activation, F.relu),
            rope_k_repeat=(getattr(self.cross_attn_image, "rope_k_repeat", None), True),
            pos_enc_at_attn=(self.pos_enc_at_attn, False),
            pos_enc_at_cross_attn_keys=(self.pos_enc_at_cross_attn_keys, True),
            pos_enc_at_cross_attn_queries=(self.pos_enc_at_cross_attn_queries, False),
        )

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

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:
        """tgt: [B, N, d_model] -> the same shape.

        memory: [B, M, memory_dim]. pos, query_pos: positions of `memory` and `tgt`, or None.
        num_k_exclude_rope: tokens at the end of `memory` without a position on the map.
        """
        tgt = self._forward_sa(tgt, query_pos)
        tgt = self._forward_ca(tgt, memory, query_pos, pos, num_k_exclude_rope)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(tgt))))
        return tgt + self.dropout3(self.linear2(hidden))

    def _forward_sa(self, tgt: Tensor, query_pos: Tensor | None) -> Tensor:
        """Attention of the frame to itself."""
        values = self.norm1(tgt)
        q = _with_position(values, query_pos, self.pos_enc_at_attn)
        return tgt + self.dropout1(self.self_attn(q, q, v=values))

    def _forward_ca(
        self,
        tgt: Tensor,
        memory: Tensor,
        query_pos: Tensor | None,
        pos: Tensor | None,
        num_k_exclude_rope: int = 0,
    ) -> Tensor:
        """Attention of the frame to its memories."""
        further = {"num_k_exclude_rope": num_k_exclude_rope} if num_k_exclude_rope > 0 else {}
        attended = self.cross_attn_image(
            q=_with_position(self.norm2(tgt), query_pos, self.pos_enc_at_cross_attn_queries),
            k=_with_position(memory, pos, self.pos_enc_at_cross_attn_keys),
            v=memory,
            **further,
        )
        return tgt + self.dropout2(attended)


def _shapes(module: nn.Module) -> tuple[torch.Size, ...]:
    return tuple(p.shape for p in module.parameters())


def _with_position(x: Tensor, position: Tensor | None, enabled: bool) -> Tensor:
    return x + position if enabled and position is not None else x


class MemoryAttention(WithTables, OpModule[MemoryAttentionWeights]):  # type: ignore[misc]
    """All layers and the final norm (official `MemoryAttention`).

    `ops.memory_attention` computes them for memories that are given as maps and object pointers,
    in `attend`. `forward` gets one tensor of memory tokens and calls the layers.
    """

    def __init__(
        self,
        d_model: int,
        pos_enc_at_input: bool,
        layer: nn.Module,
        num_layers: int,
        batch_first: bool = True,
    ) -> None:
        """layer: copied num_layers times; a ModuleList of so many layers is used as it is.

        pos_enc_at_input: add a tenth of the positions to the features.
        batch_first: layers get [B, N, d_model] instead of [N, B, d_model].
        """
        super().__init__()
        self.d_model = d_model
        self.layers = copies_of(layer, num_layers)
        self.num_layers = num_layers
        self.norm = nn.LayerNorm(d_model)
        self.pos_enc_at_input = pos_enc_at_input
        self.batch_first = batch_first
        self.rope: Tensor
        first = getattr(self.layers[0], "self_attn", None)
        self.set_side(first.feat_sizes[0] if isinstance(first, RoPEAttention) else 1)
        self._fusion = Fusion({"": self})

    @classmethod
    def from_config(cls, config: Sam2Config) -> MemoryAttention:
        """The memory attention of an architecture."""
        count = config.memory_layers
        layers = nn.ModuleList(MemoryAttentionLayer.from_config(config) for _ in range(count))
        return cls(config.hidden_dim, pos_enc_at_input=True, layer=layers, num_layers=count)

    def set_side(self, side: int) -> None:
        """Make the table of rotations for maps of side x side tokens, which the op reads."""
        self.add_table("rope", partial(rope_table, self.d_model, side))

    def reason_against_op(self) -> str | None:
        """The op adds positions to the features, and reads batches first."""
        shapes = {_shapes(layer) for layer in self.layers}
        return unusual_setting(
            pos_enc_at_input=(self.pos_enc_at_input, True),
            batch_first=(self.batch_first, True),
            different_layers=(len(shapes), 1),
        )

    def gather_weights(self) -> MemoryAttentionWeights:
        """The weights of `ops.memory_attention`."""
        layers = tuple(layer.gather_weights() for layer in self.layers)  # type: ignore[operator]
        return MemoryAttentionWeights(layers, norm_of(self.norm))

    def forward(
        self,
        curr: Tensor | list[Tensor],
        memory: Tensor,
        curr_pos: Tensor | list[Tensor] | None = None,
        memory_pos: Tensor | None = None,
        num_obj_ptr_tokens: int = 0,
    ) -> Tensor:
        """Features fused with memories, [N, B, dim].

        curr: features [N, B, dim], or a list of one such tensor, and curr_pos their positions.
        memory: [M, B, memory_dim], and memory_pos its positions.
        num_obj_ptr_tokens: tokens at the end of `memory` that have no position on the map.
        """
        if isinstance(curr, list):
            curr = _only(curr, "curr")
            curr_pos = _only(curr_pos, "curr_pos") if isinstance(curr_pos, list) else curr_pos
        assert not isinstance(curr_pos, list)
        if curr.shape[1] != memory.shape[1]:
            raise ValueError(
                f"memory: expected the batch size of curr, {curr.shape[1]}, got {memory.shape[1]}"
            )
        output = curr
        if self.pos_enc_at_input and curr_pos is not None:
            output = output + 0.1 * curr_pos
        if self.batch_first:
            output, memory = output.transpose(0, 1), memory.transpose(0, 1)
            curr_pos = None if curr_pos is None else curr_pos.transpose(0, 1)
            memory_pos = None if memory_pos is None else memory_pos.transpose(0, 1)
        for layer in self.layers:
            rotary = isinstance(getattr(layer, "cross_attn_image", None), RoPEAttention)
            further = {"num_k_exclude_rope": num_obj_ptr_tokens} if rotary else {}
            output = layer(tgt=output, memory=memory, pos=memory_pos, query_pos=curr_pos, **further)
        output = self.norm(output)
        return output.transpose(0, 1) if self.batch_first else output

    def run_op(
        self,
        x: Tensor,
        weights: MemoryAttentionWeights,
        position: Tensor,
        memories: Memories | MemoryTable,
        temporal: Tensor,
        memory_position: Tensor,
    ) -> Tensor:
        """Features fused with memories by the op, [B, N, dim].

        x: [1 or B, N, dim]. weights: from `op_weights`. position: [1, N, dim].
        temporal: [T, memory_dim]. memory_position: [N, memory_dim].
        If all objects of a frame share x [1, N, dim], it is computed once up to the first
        attention to memories.
        """
        x = x + 0.1 * position
        if isinstance(memories, MemoryTable):
            return memory_attention_at(x, weights, self.rope, memories, temporal, memory_position)
        return memory_attention(x, weights, self.rope, memories, temporal, memory_position)


def _only(items: list[Tensor], name: str) -> Tensor:
    if len(items) != 1:
        raise ValueError(f"{name}: expected one tensor or a list of one, got {len(items)}")
    return items[0]
