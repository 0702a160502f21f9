"""An op computes modules only if no program can tell; otherwise they are called.

Every change of a module is made to every part of a small model. The reason must name it, and the
results must be those of the calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from sam2_fast.model import fusion
from sam2_fast.model.hiera import MultiScaleBlock
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.model.parts import LAYERS, PARTS, Lora, all_called, assert_close, replace, run


def test_ops_and_calls_give_the_same_results(model: SAM2VideoPredictor) -> None:
    assert model.unfused_parts() == {}
    assert model.encoder_reason_to_call() is None and model.reason_to_call() is None
    assert_close(run(model), all_called(model))
    assert model.unfused_parts() == {}


class Negative(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def negative(layer: nn.Linear) -> nn.Module:
    other = Negative(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    return other


def without_bias(layer: nn.Linear) -> nn.Module:
    other = nn.Linear(layer.in_features, layer.out_features, bias=False)
    other.load_state_dict({"weight": layer.weight})
    return other


def quantised(layer: nn.Linear) -> nn.Module:
    container = nn.Sequential(layer)
    return torch.ao.quantization.quantize_dynamic(container, {nn.Linear}, torch.qint8)[0]


def patch_forward(model: Any, name: str) -> None:
    layer = LAYERS[name](model)
    layer.forward = lambda x: 2 * F.linear(x, layer.weight)  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Any, str], object]] = {
    "an adapter": lambda m, name: replace(m, name, Lora),
    "a subclass": lambda m, name: replace(m, name, negative),
    "a sequence": lambda m, name: replace(m, name, lambda layer: nn.Sequential(layer, nn.Tanh())),
    "no bias": lambda m, name: replace(m, name, without_bias),
    "quantisation": lambda m, name: replace(m, name, quantised),
    "a changed class": lambda m, name: setattr(LAYERS[name](m), "__class__", Negative),
    "a patched forward": patch_forward,
    "a forward hook": lambda m, name: LAYERS[name](m).register_forward_hook(lambda *x: 2 * x[2]),
    "a forward pre-hook": lambda m, name: LAYERS[name](m).register_forward_pre_hook(
        lambda _, inputs: (2 * inputs[0],)
    ),
    "a parametrisation": lambda m, name: nn.utils.parametrize.register_parametrization(
        LAYERS[name](m), "weight", Twice()
    ),
    "pruning": lambda m, name: prune.random_unstructured(LAYERS[name](m), "weight", 0.9),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", PARTS)
def test_a_changed_layer_is_called(model: SAM2VideoPredictor, name: str, change: str) -> None:
    before = run(model)
    torch.manual_seed(1)
    CHANGES[change](model, name)
    path = next(path for path, m in model.named_modules() if m is PARTS[name](model))
    assert list(model.unfused_parts()) == [path]
    reasons = model.encoder_reason_to_call(), model.reason_to_call()
    assert [reason is not None for reason in reasons] == [name == "block", name != "block"]
    outputs = run(model)
    assert not all(torch.allclose(a, b) for a, b in zip(outputs, before, strict=True))
    assert_close(outputs, all_called(model))


OBSERVATIONS: dict[str, Callable[[nn.Linear], object]] = {
    "a backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "another dictionary of hooks": lambda layer: (
        setattr(layer, "_forward_hooks", OrderedDict()),
        layer.register_forward_hook(lambda *_: None),
    ),
    "a patched method of every module": lambda layer: setattr(layer, "_call_impl", torch.tanh),
    "its own compilation": lambda layer: layer.compile(backend="eager"),
}


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_an_observed_layer_is_detected(model: SAM2VideoPredictor, observation: str) -> None:
    block = PARTS["block"](model)
    assert block.reason_to_call() is None
    layer = LAYERS["block"](model)
    layer.register_forward_hook(lambda *_: None).remove()  # earlier registrations do not matter
    assert block.reason_to_call() is None
    OBSERVATIONS[observation](layer)
    assert (block.reason_to_call() or "").startswith("attn.qkv: its attribute") or (
        block.reason_to_call() == "attn.qkv: it has a hook"
    )


SETTINGS: dict[str, tuple[Callable[[Any], Any], str, object]] = {
    "the epsilon of a norm": (lambda m: m.memory_attention.norm, "eps", 0.1),
    "the number of heads": (lambda m: m.image_encoder.trunk.blocks[3].attn, "num_heads", 1),
    "the size of windows": (lambda m: m.image_encoder.trunk.blocks[0], "window_size", 0),
    "the form of GELU": (lambda m: m.image_encoder.trunk.blocks[0].mlp.act, "approximate", "tanh"),
    "an activation": (lambda m: m.memory_attention.layers[0], "activation", F.gelu),
    "where positions are added": (
        lambda m: m.memory_attention.layers[0],
        "pos_enc_at_cross_attn_keys",
        False,
    ),
    "the stride of a convolution": (
        lambda m: m.memory_encoder.mask_downsampler.encoder[0],
        "padding",
        (0, 0),
    ),
}


@pytest.mark.parametrize("setting", [*SETTINGS][:-1])
def test_changed_settings_are_followed(model: SAM2VideoPredictor, setting: str) -> None:
    before = run(model)
    module, name, value = SETTINGS[setting]
    setattr(module(model), name, value)
    outputs = run(model)
    assert name in " ".join(model.unfused_parts().values())
    assert not all(torch.equal(a, b) for a, b in zip(outputs, before, strict=True))
    assert_close(outputs, all_called(model))


def test_a_changed_convolution_is_called(model: SAM2VideoPredictor) -> None:
    module, name, value = SETTINGS["the stride of a convolution"]
    setattr(module(model), name, value)
    assert "padding is (0, 0)" in model.unfused_parts()["memory_encoder"]


def test_only_the_block_with_a_hook_is_called(
    model: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = MultiScaleBlock.run_op

    def counted(self: MultiScaleBlock, *arguments: Any, **keywords: Any) -> Tensor:
        calls.append(self.dim)
        return original(self, *arguments, **keywords)

    blocks = model.image_encoder.trunk.blocks
    images = torch.zeros(1, 3, 64, 64)
    outputs: list[Tensor] = []
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(MultiScaleBlock, "run_op", counted)
        patch.setattr(fusion, "_code", {**fusion._code})
        fusion._know(MultiScaleBlock)
        expected = model.encode_image(images)
        assert calls == [block.dim for block in blocks]
        calls.clear()
        handle = blocks[1].register_forward_hook(lambda _, __, output: outputs.append(output))
        observed = model.encode_image(images)
        assert calls == [block.dim for i, block in enumerate(blocks) if i != 1]
        assert len(outputs) == 1
        handle.remove()
        calls.clear()
        model.encode_image(images)
        assert len(calls) == len(blocks)
    assert_close([*observed], [*expected])
    kept = outputs[0].clone()
    run(model)
    assert torch.equal(outputs[0], kept), "the memory of an observed output is not reused"
