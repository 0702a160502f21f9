"""Modules of a tracked frame that are hooked, replaced or patched are called.

Otherwise an op reads their weights instead of calling them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam2_fast.model.layers import MLP, untouched, untouched_mlp
from sam2_fast.types import NoPoints, Prediction
from tests.video.sessions import small_predictor


@torch.inference_mode()
def track(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Track a frame; returns logits, pointer and presence."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.encode_image(image)
    outputs: tuple[Tensor, Tensor, Tensor]
    outputs = model.track(features.low, features, NoPoints(2), None, True)
    return outputs


MODULES = {
    "mask decoder": lambda m: m.sam_mask_decoder,
    "presence head": lambda m: m.sam_mask_decoder.pred_obj_score_head,
    "a layer of the presence head": lambda m: m.sam_mask_decoder.pred_obj_score_head.layers[1],
    "pointer projection": lambda m: m.obj_ptr_proj,
    "activation of the pointer projection": lambda m: m.obj_ptr_proj.act,
    "prompt encoder": lambda m: m.sam_prompt_encoder,
    "position of prompts": lambda m: m.sam_prompt_encoder.pe_layer,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_hook_is_called_and_does_not_change_the_result(name: str) -> None:
    model = small_predictor()
    before = track(model)
    outputs = []
    module = MODULES[name](model)
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    after = track(model)
    assert outputs
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))
    if name == "mask decoder":
        assert isinstance(outputs[0], Prediction), "the public type of the decoder's result"
    handle.remove()
    count = len(outputs)
    track(model)
    assert len(outputs) == count


def test_a_hook_on_all_modules_is_called_for_the_heads() -> None:
    model = small_predictor()
    modules = []
    register = nn.modules.module.register_module_forward_hook
    handle = register(lambda module, _, __: modules.append(module))
    try:
        track(model)
    finally:
        handle.remove()
    assert any(module is model.obj_ptr_proj for module in modules)
    assert any(module is model.sam_mask_decoder.pred_obj_score_head for module in modules)


class Adapter(nn.Module):
    """A linear layer with an addition, like an adapter."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 1.0


class NegativeMLP(MLP):
    """A subclass with the same layers and another result."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def adapt_a_layer(model: Any) -> None:
    model.obj_ptr_proj.layers[2] = Adapter(model.obj_ptr_proj.layers[2])


def replace_by_a_subclass(model: Any) -> None:
    head = NegativeMLP(256, 256, 256, 3)
    head.load_state_dict(model.obj_ptr_proj.state_dict())
    model.obj_ptr_proj = head


def replace_by_a_sequence(model: Any) -> None:
    model.obj_ptr_proj = nn.Sequential(nn.Linear(256, 256), nn.Tanh())


def patch_the_method(model: Any) -> None:
    original = model.obj_ptr_proj.forward
    model.obj_ptr_proj.forward = lambda x: original(x) + 1.0


def parametrize(model: Any) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(model.obj_ptr_proj.layers[2], "weight", Twice())


CHANGES = (
    adapt_a_layer,
    replace_by_a_subclass,
    replace_by_a_sequence,
    patch_the_method,
    parametrize,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_changed_pointer_projection_computes_the_pointer(change: Callable[[Any], None]) -> None:
    model = small_predictor()
    inputs = []
    handle = model.obj_ptr_proj.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    before = track(model)
    handle.remove()
    change(model)
    after = track(model)
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    with torch.inference_mode():
        assert (after[2] > 0).all()
        assert torch.allclose(after[1], model.obj_ptr_proj(inputs[0]), atol=1e-5)
    assert torch.allclose(after[0], before[0], atol=1e-5)


def test_a_wrapped_decoder_is_called_with_the_arguments_of_the_original() -> None:
    model = small_predictor()
    original = model.sam_mask_decoder
    before = track(model)

    class WrappedDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = original
            self.pred_obj_score_head = original.pred_obj_score_head

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(original, name)

        def forward(
            self,
            low: Any,
            position: Any,
            sparse: Any,
            dense: Any,
            high: Any,
            mid: Any,
            multimask: Any,
            options: Any,
            present: Any = None,
            best: bool = False,
        ) -> Any:
            maps = high, mid
            inputs = low, position, sparse, dense, *maps, multimask, options, present, best
            return self.inner(*inputs)

    model.sam_mask_decoder = WrappedDecoder()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, track(model), strict=True))


CHANGES_OF_A_LAYER: dict[str, Callable[[nn.Module], object]] = {
    "a hook on gradients": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a patched forward": lambda layer: setattr(layer, "forward", torch.tanh),
    "a patched method of every module": lambda layer: setattr(layer, "_call_impl", torch.tanh),
    "its own compilation": lambda layer: layer.compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES_OF_A_LAYER)
def test_a_changed_layer_is_detected(change: str) -> None:
    mlp = MLP(4, 4, 4, 3)
    assert untouched_mlp(mlp) and untouched(mlp.layers[0], nn.Linear)
    CHANGES_OF_A_LAYER[change](mlp.layers[0])
    assert not untouched_mlp(mlp) and not untouched(mlp.layers[0], nn.Linear)


def test_modules_other_than_the_mlp_of_the_model_are_detected() -> None:
    assert not untouched_mlp(MLP(4, 4, 4, 3, activation=nn.GELU))
    assert not untouched_mlp(nn.Linear(4, 4))
