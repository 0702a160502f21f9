"""The decoder's transformer: prompt tokens and image tokens attend to each other (official `sam/transformer.py`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.model.layers import MLP


class Attention(nn.Module):
    """Multi-head attention whose inner width may be a fraction of the outer one."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, d]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None) -> Tensor:
        """q: [B, N, dim]; k, v: [B, M, dim]; present: [B, M] bool, keys to attend to (None: all) -> [B, N, dim]."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        mask = None if present is None else present[:, None, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(-2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, tokens to image, MLP on tokens, image to tokens; post-norm."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, num_layers=2)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample=2)
        self.first = first

    def forward(
        self, tokens: Tensor, image: Tensor, token_position: Tensor, image_position: Tensor, present: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """tokens, token_position: [B, T, dim]; image: [B, N, dim]; image_position: [1, N, dim]; present: [B, T] bool or None
        -> tokens and image, updated."""
        if self.first:  # the tokens are still their own position: nothing to add, nothing to keep
            tokens = self.self_attn(tokens, tokens, tokens, present)
        else:
            q = tokens + token_position
            tokens = tokens + self.self_attn(q, q, tokens, present)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_position, image + image_position, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image + image_position, tokens + token_position, tokens, present)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_position: Tensor, prompt: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """image: [B, N, dim]; image_position: [1, N, dim]; prompt: [B, T, dim]; present: [B, T] bool, tokens that may be attended
        to (None: all) -> tokens [B, T, dim], image [B, N, dim]."""
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, image_position, present)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompt, image + image_position, image)
        return self.norm_final_attn(tokens), image
