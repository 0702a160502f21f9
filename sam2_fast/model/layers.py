"""Layers that several parts of the model share. Parameter names are those of the official checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """`num_layers` linear layers with an activation between them (official `sam2_utils.MLP`)."""

    def __init__(
        self, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int, activation: type[nn.Module] = nn.ReLU, sigmoid: bool = False
    ) -> None:
        super().__init__()
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.act = activation()
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim_in] -> [..., dim_out]."""
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        x = self.layers[-1](x)
        return x.sigmoid() if self.sigmoid else x


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, H, W] (official `LayerNorm2d`, eps 1e-6)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> the same shape."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Table(nn.Module):
    """A constant of the architecture: follows the model's device, stays float32 whatever the dtype of the weights."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self._make = make
        self.register_buffer("value", make(), persistent=False)
        self.value: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Table:
        device = fn(self.value.new_empty(0)).device
        made = self._make() if self.value.is_meta and device.type != "meta" else self.value
        self.value = made.to(device)
        return self

    def forward(self) -> Tensor:
        """The constant, float32."""
        return self.value


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))
