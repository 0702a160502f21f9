"""Layers that several parts of the model share. Parameter names are those of the official
checkpoints.
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
    """A constant of the architecture: follows the model's device, stays float32 whatever the dtype
    of the weights.
    """

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


class OpModule(nn.Module, Generic[W]):
    """A module whose weights one op reads: gathered and checked when they are placed or changed."""

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
        """As `gather_weights`, matrices in the dtype of the caller's autocast; held while they stay
        as they are.
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
    """Names of methods of a class and its bases, which an attribute of an instance may replace."""
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name)))


def untouched(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `part` runs the code of `kind` and nothing else.

    Its class is exactly `kind`; it has no hook, no patched method and no compilation of its own.
    Only then may its parameters be read in place of a call. False while torch compiles or exports:
    its compiler follows calls.
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
    # mypy takes no class for hashable
    return not any(hooks) and _methods(kind).isdisjoint(vars(part))  # type: ignore[arg-type]


def untouched_mlp(part: nn.Module) -> bool:
    """As `untouched`, of an `MLP` of linear layers with ReLU between and of all that is in it."""
    if not isinstance(part, MLP) or not untouched(part, MLP) or not untouched(part.act, nn.ReLU):
        return False
    return all(untouched(layer, nn.Linear) and layer.bias is not None for layer in part.layers)


def held_by(model: nn.Module) -> list[object]:
    """All that a model's parts hold just now: a CUDA graph has recorded the addresses, and keeps it
    where it is.
    """
    held: list[object] = []
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Cache):
                held.append(value.value)
            elif isinstance(value, WeightsCache):
                held += value.cached_values
    return held


def folded(inner: nn.Conv2d, outer: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of `outer(inner(x))` of two 1 x 1 convolutions as one, in the dtype of
    `outer`.
    """
    with torch.autocast(inner.weight.device.type, enabled=False):
        wide = torch.promote_types(inner.weight.dtype, torch.float32)
        matrix = outer.weight.flatten(1).to(wide)
        weight, bias = matrix @ inner.weight.flatten(1).to(wide), outer.bias
        if inner.bias is not None:
            shift = matrix @ inner.bias.to(wide)
            bias = shift if bias is None else shift + bias.to(wide)
    dtype = outer.weight.dtype
    return weight.to(dtype)[..., None, None], None if bias is None else bias.to(dtype)


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] -> [B, C, height, width]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))
