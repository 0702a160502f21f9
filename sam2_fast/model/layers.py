"""Layers that several parts of the model share.

Parameters have the names of the official checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from sam2_fast.ops.core.autocast import in_compute_dtype
from sam2_fast.ops.core.cache import Cache, WeightsCache
from sam2_fast.ops.core.weights import Linear, Norm, Weights
from sam2_fast.ops.mask_decoder.weights import MlpWeights

W = TypeVar("W", bound=Weights)


class MLP(nn.Module):
    """`num_layers` linear layers with an activation between them (official `sam2_utils.MLP`)."""

    def __init__(
        self,
        dim_in: int,
        dim_hidden: int,
        dim_out: int,
        num_layers: int,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        dims = [dim_in, *[dim_hidden] * (num_layers - 1), dim_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim_in] -> [..., dim_out]."""
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


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
    """A constant of the architecture, on the model's device.

    It stays float32 if the dtype of the weights changes.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self._make = make
        self.register_buffer("value", make(), persistent=False)
        self.value: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Table:
        device = fn(self.value.new_empty(0)).device
        value = self._make() if self.value.is_meta and device.type != "meta" else self.value
        self.value = value.to(device)
        return self

    def forward(self) -> Tensor:
        """The constant, float32."""
        return self.value


class OpModule(nn.Module, Generic[W]):
    """A module with the weights of one op.

    They are gathered and checked on first use, and again after they were moved or changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._gathered: WeightsCache[W] = WeightsCache()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OpModule[W]:
        self._gathered.clear()
        return super()._apply(fn, recurse)

    def gather_weights(self) -> W:
        """The weights of the op, by name."""
        raise NotImplementedError

    def weights(self) -> W:
        """`gather_weights()`, with matrices in the dtype of the caller's autocast.

        The result is cached until a weight changes.
        """
        return in_compute_dtype(self._gathered.get(self._all_modules, self.gather_weights))

    def _all_modules(self) -> list[nn.Module]:
        return list(self.modules())


def linear_of(layer: nn.Module) -> Linear:
    """Weight and bias of a linear layer."""
    return Linear(layer.weight, layer.bias)  # type: ignore[arg-type]


def norm_of(layer: nn.Module) -> Norm:
    """Weight and bias of a layer norm."""
    return Norm(layer.weight, layer.bias)  # type: ignore[arg-type]


def mlp_of(mlp: nn.Module) -> MlpWeights:
    """The three layers of an `MLP`."""
    return MlpWeights(*map(linear_of, mlp.layers))  # type: ignore[arg-type]


@functools.cache
def _methods(kind: type) -> frozenset[str]:
    """Names of methods of a class and its bases; an attribute of an instance may replace them."""
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name)))


def untouched(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of `part` runs the code of `kind` and nothing else.

    Its class is exactly `kind`, and it has no hook, no replaced method and is not compiled. Only
    then may a caller read its parameters instead of calling it. False while torch compiles or
    exports, because these follow calls.
    """
    if torch.compiler.is_compiling() or type(part) is not kind:
        return False
    if part._compiled_call_impl is not None:
        return False
    hooks = (
        _global_forward_hooks,
        _global_forward_pre_hooks,
        part._forward_hooks,
        part._forward_pre_hooks,
        part._backward_hooks,
        part._backward_pre_hooks,
    )
    # mypy does not accept a class as a hashable argument of `_methods`.
    return not any(hooks) and _methods(kind).isdisjoint(vars(part))  # type: ignore[arg-type]


def untouched_mlp(part: nn.Module) -> bool:
    """`untouched` for an `MLP` of linear layers with ReLU, and for all modules in it."""
    if not isinstance(part, MLP) or not untouched(part, MLP) or not untouched(part.act, nn.ReLU):
        return False
    return all(untouched(layer, nn.Linear) and layer.bias is not None for layer in part.layers)


def cached_values(model: nn.Module) -> list[object]:
    """All values in the caches of a model's modules.

    A CUDA graph contains the addresses of such values, so they must not be freed before the graph.
    """
    values: list[object] = []
    for part in model.modules():
        for attribute in vars(part).values():
            if isinstance(attribute, Cache):
                values.append(attribute.value)
            elif isinstance(attribute, WeightsCache):
                values += attribute.cached_values
    return values


def fold_convolutions(inner: nn.Conv2d, outer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one 1 x 1 convolution that computes `outer(inner(x))`.

    inner, outer: 1 x 1 convolutions. The result has the dtype of `outer`.
    """
    with torch.autocast(inner.weight.device.type, enabled=False):
        compute_dtype = torch.promote_types(inner.weight.dtype, torch.float32)
        matrix = outer.weight.flatten(1).to(compute_dtype)
        weight = matrix @ inner.weight.flatten(1).to(compute_dtype)
        bias = outer.bias
        if inner.bias is not None:
            shift = matrix @ inner.bias.to(compute_dtype)
            bias = shift if bias is None else shift + bias.to(compute_dtype)
    dtype = outer.weight.dtype
    return weight.to(dtype)[..., None, None], None if bias is None else bias.to(dtype)


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))
