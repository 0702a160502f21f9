"""Attention with a rotary position encoding, as a module (official `RoPEAttention`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sam2_fast.model import rotary
from sam2_fast.model.fusion import unusual_setting
from sam2_fast.model.layers import linear_of
from sam2_fast.model.rotary import apply_rotary_enc, compute_axial_cis
from sam2_fast.model.two_way_transformer import Attention
from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.lookups import LookedUp, watch
from sam2_fast.ops.core.weights import Linear
from sam2_fast.ops.rope_attention import rope_table, rotate

_LOOKED_UP = (
    LookedUp(globals(), "apply_rotary_enc", "compute_axial_cis"),
    LookedUp(vars(rotary), "init_t_xy", "reshape_for_broadcast"),
)
watch(__name__, *_LOOKED_UP)


class RoPEAttention(Attention):
    """Attention with queries and keys rotated by their positions on a square map.

    rope_k_repeat: keys are several maps as large as that of the queries, rotated alike.
    feat_sizes: width and height of the map in tokens, for `freqs_cis`.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int = 1,
        downsample_rate: int = 1,
        dropout: float = 0.0,
        kv_in_dim: int | None = None,
        rope_theta: float = 10000.0,
        rope_k_repeat: bool = False,
        feat_sizes: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(embedding_dim, num_heads, downsample_rate, dropout, kv_in_dim)
        self.rope_theta = rope_theta
        self.rope_k_repeat = rope_k_repeat
        self.feat_sizes = (int(feat_sizes[0]), int(feat_sizes[1]))
        self._tables: dict[tuple[int, float], Tensor] = {}

    def reason_against_op(self) -> str | None:
        """The op has one head of all channels, and the rotations of the released models."""
        return unusual_setting(
            num_heads=(self.num_heads, 1),
            internal_dim=(self.internal_dim, self.embedding_dim),
            rope_theta=(self.rope_theta, 10000.0),
        )

    @property
    def freqs_cis(self) -> Tensor:
        """The rotations of all tokens as complex numbers, [tokens, channels of a head / 2]."""
        cos, sin = self._table(self.feat_sizes[0], self.q_proj.weight.device)
        return torch.complex(cos, sin)

    def projections(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The layers for queries, keys, values and the output."""
        q, k, v, out = map(linear_of, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        return q, k, v, out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """q: [B, N, embedding_dim]; k, v: [B, M, kv_in_dim] -> [B, N, embedding_dim].

        N is the number of tokens of a square map. num_k_exclude_rope: tokens at the end of k
        without a position. Raises ValueError for a number of keys that does not fit.
        """
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q, k, v = (self._separate_heads(x, self.num_heads) for x in (q, k, v))
        rotated = k.shape[-2] - num_k_exclude_rope
        self._check(q.shape[-2], rotated)
        q, keys = self._rotate(q, k[:, :, :rotated])
        k = torch.cat([keys, k[:, :, rotated:]], dim=2) if num_k_exclude_rope else keys
        return self.out_proj(self._recombine_heads(self.attend(q, k, v)))

    def _rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys rotated by their positions, [B, heads, tokens, channels]."""
        side = math.isqrt(q.shape[-2])
        if any(functions.replaced() for functions in _LOOKED_UP):
            dim = self.internal_dim // self.num_heads
            cis = compute_axial_cis(dim=dim, end_x=side, end_y=side, theta=self.rope_theta)
            return apply_rotary_enc(
                q, k, freqs_cis=cis.to(q.device), repeat_freqs_k=self.rope_k_repeat
            )
        table = self._table(side, q.device)
        if k.shape[-2]:
            k = rotate(k.unflatten(2, (-1, q.shape[-2])), table).flatten(2, 3)
        return rotate(q, table), k

    def _check(self, queries: int, keys: int) -> None:
        repeated = "" if self.rope_k_repeat else " once, without rope_k_repeat"
        fits = keys % queries == 0 if self.rope_k_repeat else keys in (0, queries)
        if math.isqrt(queries) ** 2 != queries or not fits:
            raise ValueError(
                f"q, k: expected the tokens of a square map, and keys for it{repeated}, got "
                f"{queries} queries and {keys} keys with a position"
            )

    def _table(self, side: int, device: torch.device) -> Tensor:
        key = side, self.rope_theta
        table = self._tables.get(key)
        if table is not None and table.device == device:
            return table
        dim = self.internal_dim // self.num_heads
        if tracing.recording_reason() is not None:
            return rope_table(dim, side, self.rope_theta).to(device)
        with torch.inference_mode(False):
            table = self._tables[key] = rope_table(dim, side, self.rope_theta).to(device)
        return table
