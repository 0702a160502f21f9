"""The decoder's transformer: prompt tokens and image tokens attend to each other (official `sam/transformer.py`)."""

from __future__ import annotations

from torch import Tensor, nn

from sam2_fast.model.layers import MLP, parameters_of


class Attention(nn.Module):
    """Projections of a multi-head attention whose inner width may be a fraction of the outer one."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def weights(self) -> list[Tensor]:
        """Its 8 tensors in the order of `ops.mask_decoder`."""
        return parameters_of(self.q_proj, self.k_proj, self.v_proj, self.out_proj)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, tokens to image, MLP on tokens, image to tokens; post-norm."""

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

    def weights(self) -> list[Tensor]:
        """Its 36 tensors in the order of `ops.mask_decoder`."""
        return [
            *self.self_attn.weights(),
            *parameters_of(self.norm1),
            *self.cross_attn_token_to_image.weights(),
            *parameters_of(self.norm2, *self.mlp.layers, self.norm3, self.norm4),
            *self.cross_attn_image_to_token.weights(),
        ]


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image; `ops.mask_decoder` computes."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim) for _ in range(2))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def weights(self) -> list[Tensor]:
        """Its 82 tensors in the order of `ops.mask_decoder`."""
        blocks = [t for layer in self.layers if isinstance(layer, TwoWayBlock) for t in layer.weights()]
        return [*blocks, *self.final_attn_token_to_image.weights(), *parameters_of(self.norm_final_attn)]
