"""Hooked, replaced and patched parts of a tracked frame are called, not read as weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam2_fast.model.layers import MLP, untouched, untouched_mlp
from sam2_fast.types import NoPoints, Prediction
from tests.video.recorded import small_predictor


@torch.inference_mode()
def tracked(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model.encode_image(image)
    outputs: tuple[Tensor, Tensor, Tensor]
    outputs = model.track(features.low, features, NoPoints(2), None, True)
    return outputs


PARTS = {
    "mask decoder": lambda m: m.sam_mask_decoder,
    "presence head": lambda m: m.sam_mask_decoder.pred_obj_score_head,
    "a layer of the presence head": lambda m: m.sam_mask_decoder.pred_obj_score_head.layers[1],
    "pointer projection": lambda m: m.obj_ptr_proj,
    "an activation": lambda m: m.obj_ptr_proj.act,
    "prompt encoder": lambda m: m.sam_prompt_encoder,
    "position of prompts": lambda m: m.sam_prompt_encoder.pe_layer,
}


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_is_called_and_the_result_stays(part: str) -> None:
    model = small_predictor()
    before, seen = tracked(model), []
    handle = PARTS[part](model).register_forward_hook(lambda _, __, output: seen.append(output))
    after = tracked(model)
    assert seen
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))
    if part == "mask decoder":
        assert isinstance(seen[0], Prediction), "the public type of the decoder's result"
    handle.remove()
    count = len(seen)
    tracked(model)
    assert len(seen) == count


def test_a_hook_on_all_modules_is_called_for_the_heads() -> None:
    model, seen = small_predictor(), []
    register = nn.modules.module.register_module_forward_hook
    handle = register(lambda module, _, __: seen.append(module))
    try:
        tracked(model)
    finally:
        handle.remove()
    assert any(module is model.obj_ptr_proj for module in seen)
    assert any(module is model.sam_mask_decoder.pred_obj_score_head for module in seen)


class Adapted(nn.Module):
    """A linear layer with something added, as adapters are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 1.0


class Negative(MLP):
    """Another class with the same layers."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def adapt_a_layer(model: Any) -> None:
    model.obj_ptr_proj.layers[2] = Adapted(model.obj_ptr_proj.layers[2])


def replace_by_a_subclass(model: Any) -> None:
    head = Negative(256, 256, 256, 3)
    head.load_state_dict(model.obj_ptr_proj.state_dict())
    model.obj_ptr_proj = head


def replace_by_a_sequence(model: Any) -> None:
    model.obj_ptr_proj = nn.Sequential(nn.Linear(256, 256), nn.Tanh())


def patch_the_method(model: Any) -> None:
    plain = model.obj_ptr_proj.forward
    model.obj_ptr_proj.forward = lambda x: plain(x) + 1.0


def parametrize(model: Any) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(model.obj_ptr_proj.layers[2], "weight", Twice())


WAYS = (
    adapt_a_layer,
    replace_by_a_subclass,
    replace_by_a_sequence,
    patch_the_method,
    parametrize,
)


@pytest.mark.parametrize("change", WAYS, ids=lambda c: c.__name__)
def test_a_changed_part_changes_the_pointer_as_a_call_of_it_does(
    change: Callable[[Any], None],
) -> None:
    model, given = small_predictor(), []
    handle = model.obj_ptr_proj.register_forward_hook(lambda _, args, __: given.append(args[0]))
    before = tracked(model)
    handle.remove()
    change(model)
    after = tracked(model)
    assert not torch.allclose(after[1], before[1], atol=1e-3)
    with torch.inference_mode():
        assert (after[2] > 0).all()
        assert torch.allclose(after[1], model.obj_ptr_proj(given[0]), atol=1e-5)
    assert torch.allclose(after[0], before[0], atol=1e-5)


def test_a_decoder_of_the_caller_gets_the_arguments_of_the_model_s_own() -> None:
    model = small_predictor()
    plain = model.sam_mask_decoder
    before = tracked(model)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain
            self.pred_obj_score_head = plain.pred_obj_score_head

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(plain, name)

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

    model.sam_mask_decoder = Wrapped()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, tracked(model), strict=True))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a hook on gradients": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a patched forward": lambda layer: setattr(layer, "forward", torch.tanh),
    "a patched method of every module": lambda layer: setattr(layer, "_call_impl", torch.tanh),
    "its own compilation": lambda layer: layer.compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_is_not_untouched(change: str) -> None:
    mlp = MLP(4, 4, 4, 3)
    assert untouched_mlp(mlp) and untouched(mlp.layers[0], nn.Linear)
    CHANGES[change](mlp.layers[0])
    assert not untouched_mlp(mlp) and not untouched(mlp.layers[0], nn.Linear)


def test_other_layers_are_no_untouched_mlp() -> None:
    assert not untouched_mlp(MLP(4, 4, 4, 3, activation=nn.GELU))
    assert not untouched_mlp(nn.Linear(4, 4))
