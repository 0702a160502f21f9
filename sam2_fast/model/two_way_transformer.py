"""The decoder's transformer: prompt tokens and image tokens attend to each other.

Source: official `sam/transformer.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.model.fusion import Part, unusual_setting
from sam2_fast.model.layers import MLP, linear_of, norm_of, to_tokens
from sam2_fast.ops.core.lookups import LookedUp, watch
from sam2_fast.ops.mask_decoder.weights import AttentionWeights, TwoWayLayerWeights

watch(__name__, LookedUp(globals(), "F"))


class Attention(Part):
    """Multi-head attention with embedding_dim / downsample_rate inner channels.

    dropout: probability with which an attention weight is dropped in training mode.
    kv_in_dim: channels of keys and values; None: those of queries.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        downsample_rate: int = 1,
        dropout: float = 0.0,
        kv_in_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.kv_in_dim = embedding_dim if kv_in_dim is None else kv_in_dim
        self.internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        if self.internal_dim % num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of {self.internal_dim} channels, got {num_heads}"
            )
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(self.kv_in_dim, self.internal_dim)
        self.v_proj = nn.Linear(self.kv_in_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)
        self.dropout_p = dropout

    @property
    def drops_values(self) -> bool:
        """Whether values are dropped in training mode."""
        return self.dropout_p > 0.0

    def gather_weights(self) -> AttentionWeights:
        """The weights of one attention of `ops.mask_decoder`."""
        return AttentionWeights(
            *map(linear_of, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [B, N, embedding_dim]; k, v: [B, M, kv_in_dim] -> [B, N, embedding_dim]."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        heads = (self._separate_heads(x, self.num_heads) for x in (q, k, v))
        return self.out_proj(self._recombine_heads(self.attend(*heads)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of projected tokens [B, heads, tokens, channels]."""
        dropout = self.dropout_p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    def _separate_heads(self, x: Tensor, num_heads: int) -> Tensor:
        """[B, N, C] -> [B, num_heads, N, C / num_heads]."""
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    def _recombine_heads(self, x: Tensor) -> Tensor:
        """[B, heads, N, C] -> [B, N, heads * C]."""
        return x.transpose(1, 2).flatten(2)


class TwoWayAttentionBlock(Part):
    """Self-attention of tokens, tokens to image, MLP of tokens, image to tokens; post-norm.

    activation: of the MLP. attention_downsample_rate: of the attentions between tokens and image.
    skip_first_layer_pe: self-attention gets no positions, and its result replaces the tokens.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
    ) -> None:
        super().__init__()
        rate = attention_downsample_rate
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLP(embedding_dim, mlp_dim, embedding_dim, 2, activation)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.skip_first_layer_pe = skip_first_layer_pe

    def reason_against_op(self) -> str | None:
        """The op has one rate of downsampling and ReLU."""
        return unusual_setting(
            activation=(type(self.mlp.act), nn.ReLU),
            attention_downsample_rate=(_rate(self.cross_attn_token_to_image), 2),
        )

    def gather_weights(self) -> TwoWayLayerWeights:
        """The weights of one layer of `ops.mask_decoder`."""
        fc1, fc2 = self.mlp.layers
        return TwoWayLayerWeights(
            self.self_attn.gather_weights(),
            norm_of(self.norm1),
            self.cross_attn_token_to_image.gather_weights(),
            norm_of(self.norm2),
            linear_of(fc1),
            linear_of(fc2),
            norm_of(self.norm3),
            norm_of(self.norm4),
            self.cross_attn_image_to_token.gather_weights(),
        )

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and image after the block, in the shapes of `queries` and `keys`.

        queries, query_pe: prompt tokens [B, P, C]. keys, key_pe: image tokens [B, N, C].
        """
        if self.skip_first_layer_pe:
            queries = self.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q=q, k=q, v=queries)
        queries = self.norm1(queries)

        q, k = queries + query_pe, keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=q, k=k, v=keys))
        queries = self.norm3(queries + self.mlp(queries))

        q, k = queries + query_pe, keys + key_pe
        keys = self.norm4(keys + self.cross_attn_image_to_token(q=k, k=q, v=queries))
        return queries, keys


def _rate(attention: Attention) -> int:
    return attention.embedding_dim // attention.internal_dim


class TwoWayTransformer(Part):
    """`depth` blocks and a final attention of tokens to the image."""

    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: type[nn.Module] = nn.ReLU,
        attention_downsample_rate: int = 2,
    ) -> None:
        super().__init__()
        rate = attention_downsample_rate
        self.depth = depth
        self.embedding_dim = embedding_dim
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, activation, rate, i == 0)
            for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=rate)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, P, C] and image tokens [B, h * w, C].

        image_embedding, image_pe: [B, C, h, w]. point_embedding: prompt tokens [B, P, C].
        """
        keys, key_pe = to_tokens(image_embedding), to_tokens(image_pe)
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(
                queries=queries, keys=keys, query_pe=point_embedding, key_pe=key_pe
            )
        q, k = queries + point_embedding, keys + key_pe
        queries = queries + self.final_attn_token_to_image(q=q, k=k, v=keys)
        return self.norm_final_attn(queries), keys
