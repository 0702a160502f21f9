"""Layers that several parts of the model share.

Parameters have the names of the official checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.model.fusion import Part
from sam2_fast.ops.core.cache import Cache
from sam2_fast.ops.core.weights import Linear, Norm
from sam2_fast.ops.mask_decoder.weights import MlpWeights


class MLP(Part):
    """`num_layers` linear layers with an activation between them (official `sam2_utils.MLP`)."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        activation: type[nn.Module] = nn.ReLU,
        sigmoid_output: bool = False,
    ) -> None:
        super().__init__()
        self.num_layers = num_layers
        dims = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.sigmoid_output = sigmoid_output
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., input_dim] -> [..., output_dim]."""
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == self.num_layers - 1 else self.act(layer(x))
        return x.sigmoid() if self.sigmoid_output else x


class DropPath(Part):
    """Drops whole samples of a residual branch in training mode (official `DropPath`)."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    @property
    def drops_values(self) -> bool:
        """Whether values are dropped in training mode."""
        return self.drop_prob > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, ...] -> the same shape."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            mask.div_(keep)
        return x * mask


class LayerNorm2d(Part):
    """Layer norm over the channels of [B, C, H, W] (official `LayerNorm2d`, eps 1e-6)."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] -> the same shape."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class WithTables(nn.Module):
    """A module with constants of the architecture, on its device.

    They are buffers outside the state dict, and stay float32 if the dtype of the weights changes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._table_makers: dict[str, Callable[[], Tensor]] = {}

    def add_table(self, name: str, make: Callable[[], Tensor]) -> None:
        """Add the constant `make()`, float32, as the attribute `name`."""
        self._table_makers[name] = make
        self.register_buffer(name, make(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WithTables:
        tables = {name: getattr(self, name) for name in self._table_makers}
        super()._apply(fn, recurse)
        for name, make in self._table_makers.items():
            device = getattr(self, name).device
            old = make() if tables[name].is_meta and device.type != "meta" else tables[name]
            setattr(self, name, old.to(device))
        return self


def get_activation_fn(activation: str) -> Callable[[Tensor], Tensor]:
    """The function named "relu", "gelu" or "glu". Raises RuntimeError for another name."""
    known: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "glu": F.glu}
    if activation not in known:
        raise RuntimeError(f"activation should be relu/gelu, not {activation}.")
    return known[activation]


def get_clones(module: nn.Module, N: int) -> nn.ModuleList:  # noqa: N803 - the official name
    """N deep copies of a module."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(N))


def copies_of(module: nn.Module, count: int) -> nn.ModuleList:
    """`count` deep copies of a module; a list of so many modules is returned as it is."""
    if not isinstance(module, nn.ModuleList):
        return get_clones(module, count)
    if len(module) != count:
        raise ValueError(f"num_layers: expected {len(module)}, that of the list, got {count}")
    return module


def linear_of(layer: nn.Module) -> Linear:
    """Weight and bias of a linear layer."""
    return Linear(layer.weight, layer.bias)  # type: ignore[arg-type]


def norm_of(layer: nn.Module) -> Norm:
    """Weight and bias of a layer norm."""
    return Norm(layer.weight, layer.bias)  # type: ignore[arg-type]


def mlp_of(mlp: nn.Module) -> MlpWeights:
    """The three layers of an `MLP`."""
    return MlpWeights(*map(linear_of, mlp.layers))  # type: ignore[arg-type]


@runtime_checkable
class HasCachedValues(Protocol):
    """An object that caches values computed from weights."""

    @property
    def cached_values(self) -> list[object]:
        """The values, or references to them; empty if nothing is cached."""


def cached_values(model: nn.Module) -> list[object]:
    """All values in the caches of a model's modules.

    A CUDA graph contains the addresses of such values, so they must not be freed before the graph.
    """
    values: list[object] = []
    for part in model.modules():
        for attribute in vars(part).values():
            if isinstance(attribute, Cache):
                values.append(attribute.value)
            elif isinstance(attribute, HasCachedValues):
                values += attribute.cached_values
    return values


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))
