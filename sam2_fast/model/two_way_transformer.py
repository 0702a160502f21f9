"""The decoder's transformer: prompt tokens and image tokens attend to each other.

Source: official `sam/transformer.py`.
"""

from __future__ import annotations

from torch import nn

from sam2_fast.model.layers import MLP, linear_of, norm_of
from sam2_fast.ops.mask_decoder.weights import AttentionWeights, TwoWayLayerWeights


class Attention(nn.Module):
    """The projections of a multi-head attention with dim / downsample inner channels."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def gather_weights(self) -> AttentionWeights:
        """The weights of one attention of `ops.mask_decoder`."""
        return AttentionWeights(
            *map(linear_of, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        )


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP of tokens, image to tokens; post-norm."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, num_layers=2)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample=2)

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


class TwoWayTransformer(nn.Module):
    """Two blocks and a final token-to-image attention; `ops.mask_decoder` computes."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim) for _ in range(2))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)
