"""An op computes modules only if no program can tell; otherwise they are called.

Every change of a module is made to every part of a small model. The reason must name it, and the
results must be those of the calls.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from sam2_fast.config import Sam2Config
from sam2_fast.model import fusion
from sam2_fast.model.fusion import OpModule
from sam2_fast.model.hiera import Hiera, MultiScaleBlock
from sam2_fast.model.layers import MLP, DropPath
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.ops.core import module_state, state
from sam2_fast.types import NoPoints, Points
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.video.sessions import small_predictor

PARTS: dict[str, Callable[[Any], OpModule[Any]]] = {
    "block": lambda m: m.image_encoder.trunk.blocks[1],
    "memory attention": lambda m: m.memory_attention,
    "memory encoder": lambda m: m.memory_encoder,
    "mask decoder": lambda m: m.sam_mask_decoder,
}
LAYERS: dict[str, Callable[[Any], nn.Linear]] = {
    "block": lambda m: m.image_encoder.trunk.blocks[1].attn.qkv,
    "memory attention": lambda m: m.memory_attention.layers[1].cross_attn_image.v_proj,
    "memory encoder": lambda m: m.memory_encoder.fuser.layers[0].pwconv1,
    "mask decoder": lambda m: m.sam_mask_decoder.transformer.layers[1].mlp.layers[0],
}


@pytest.fixture
def model() -> SAM2VideoPredictor:
    return small_predictor()


@pytest.fixture(params=["native", "python"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are detected by the native module, or in Python without it."""
    if request.param == "python":
        monkeypatch.setattr(state, "native", lambda: None)


@torch.inference_mode()
def run(model: SAM2VideoPredictor) -> list[Tensor]:
    """The results of all steps of the model on one image, one click and one memory."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    features = model.encode_image(random(1, 3, 64, 64))
    points = Points(torch.tensor([[[30.0, 20.0]]]), torch.ones(1, 1, dtype=torch.int32))
    fused = model.attend(features.low, [[random(16, 64)]], [[1]], [random(2, 256)], [[1.0, 2.0]], 3)
    prediction = model.decode(fused, features, points, None, multimask=True)
    tracked = model.track(fused, features, NoPoints(1), None, multimask=True)
    memory = model.encode_memory(features.low, *tracked[::2], binarize=False)
    return [*features, fused, *prediction, *tracked, memory]


def assert_close(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def all_called(model: SAM2VideoPredictor) -> list[Tensor]:
    """The results of calls of all modules."""
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert set(model.unfused_parts().values()) == {"hooks are registered for all modules"}
        return run(model)
    finally:
        handle.remove()


def test_ops_and_calls_give_the_same_results(model: SAM2VideoPredictor) -> None:
    assert model.unfused_parts() == {} and model.reason_to_call() is None
    assert_close(run(model), all_called(model))
    assert model.unfused_parts() == {}


class Lora(nn.Module):
    """A linear layer with an addition of low rank."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


class Negative(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replace(model: Any, name: str, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the layer of a part by `make(layer)`."""
    old = LAYERS[name](model)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, make(old))


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
    assert model.reason_to_call() is not None
    outputs = run(model)
    assert not all(torch.allclose(a, b) for a, b in zip(outputs, before, strict=True))
    assert_close(outputs, all_called(model))


OBSERVATIONS: dict[str, Callable[[nn.Linear], object]] = {
    "a backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "a hook put into the dictionary": lambda layer: layer._forward_hooks.update({0: print}),
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


@pytest.mark.parametrize("name", PARTS)
def test_undoing_a_change_restores_the_op(model: SAM2VideoPredictor, name: str) -> None:
    expected = run(model)
    layer = LAYERS[name](model)
    handle = layer.register_forward_hook(lambda *x: 2 * x[2])
    run(model)
    handle.remove()
    assert all(map(torch.equal, run(model), expected))
    layer.forward = torch.tanh  # type: ignore[method-assign]
    del layer.forward
    assert model.unfused_parts() == {}
    assert all(map(torch.equal, run(model), expected))


@pytest.fixture
def examinations(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every examination of modules, which is slow."""
    states: list[object] = []
    original = fusion._reason
    monkeypatch.setattr(fusion, "_reason", lambda *a: states.append(a) or original(*a))
    return states


def test_unchanged_modules_are_examined_once(
    model: SAM2VideoPredictor, examinations: list[object]
) -> None:
    run(model)
    count = len(examinations)
    run(model)
    model.eval()  # assigns attributes of all modules, to what they are
    nn.Linear(1, 1).register_forward_hook(lambda *_: None)  # registers a hook elsewhere
    model.options = model.options.updated(fill_hole_area=3)
    run(model)
    assert len(examinations) == count
    LAYERS["block"](model).register_forward_hook(lambda *_: None)
    run(model)
    count = len(examinations)
    run(model)
    assert len(examinations) == count


def test_a_replaced_method_of_a_class_is_called(
    model: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(model)
    for kind, name in ((nn.Linear, "forward"), (MLP, "forward"), (nn.Module, "__call__")):
        original: Any = getattr(kind, name)
        calls: list[object] = []

        def patched(
            self: Any, *arguments: Any, original: Any = original, calls: Any = calls, **named: Any
        ) -> Any:
            calls.append(self)
            return original(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(kind, name, patched)
            assert f"{kind.__name__}.{name} has been replaced" in str(model.unfused_parts())
            assert_close(run(model), before)
        assert calls
        assert model.unfused_parts() == {}


def test_a_replaced_attention_function_is_called(
    model: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = F.scaled_dot_product_attention, []
    before = run(model)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or original(*a, **k)
    )
    assert_close(run(model), before)
    assert calls and "scaled_dot_product_attention" in (model.reason_to_call() or "")


def test_dropout_is_active_in_training_mode_only(model: SAM2VideoPredictor) -> None:
    attention = model.memory_attention
    assert attention.reason_to_call() is None
    for layer in attention.layers:
        layer.dropout.train()  # type: ignore[operator, union-attr]
    assert attention.reason_to_call() == "layers.0.dropout: it drops values in training mode"
    model.train()
    assert list(model.unfused_parts()) == ["memory_attention"]
    model.eval()
    assert model.unfused_parts() == {}


def test_drop_path_drops_whole_branches_in_training_mode() -> None:
    block = MultiScaleBlock(12, 12, 2, 4, drop_path=0.5)
    x = torch.randn(64, 8, 8, 12)
    block.requires_grad_(False)
    assert isinstance(block.drop_path, DropPath) and block.drop_path.drops_values
    assert block.reason_to_call() == "drop_path: it drops values in training mode"
    torch.manual_seed(0)
    unchanged = (block(x) == x).flatten(1).all(1).float().mean()
    assert 0.1 < unchanged < 0.45, "both branches of a quarter of the samples"
    block.eval()
    assert block.reason_to_call() is None and not (block(x) == x).all()


def test_gradients_are_those_of_calls(model: SAM2VideoPredictor) -> None:
    block = PARTS["block"](model)
    x = torch.randn(1, 8, 8, block.dim)
    assert block.op_weights(x) is None, "parameters require gradients"
    with torch.no_grad():
        assert block.op_weights(x) is not None
    block.requires_grad_(False)
    assert block.op_weights(x) is not None
    assert block.op_weights(x.requires_grad_()) is None


def test_weights_are_gathered_again_after_a_parameter_changes(model: SAM2VideoPredictor) -> None:
    block = PARTS["block"](model)
    x = torch.randn(1, 8, 8, block.dim)
    with torch.inference_mode():
        weights = block.op_weights(x)
        assert weights is not None and block.op_weights(x) is weights
    layer = LAYERS["block"](model)
    with torch.no_grad():
        layer.weight.mul_(2)
        assert block.op_weights(x) is not weights
        layer.bias = nn.Parameter(torch.ones_like(layer.bias))
        changed = block.op_weights(x)
        assert changed is not None and changed.qkv.bias is layer.bias
        layer.weight.data = torch.zeros(3, 2)
        assert block.op_weights(x) is None
        assert "its parameters have the shapes" in (block.reason_to_call() or "")


class OtherTensor(Tensor):
    """A subclass of tensors, as libraries for quantisation use."""


def test_tensors_of_other_classes_reach_the_modules(model: SAM2VideoPredictor) -> None:
    block = PARTS["block"](model)
    x = torch.randn(1, 8, 8, block.dim)
    with torch.no_grad():
        assert block.op_weights(x.as_subclass(OtherTensor)) is None
        layer = LAYERS["block"](model)
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OtherTensor))
        assert block.op_weights(x) is None


def pickled(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def saved(module: Any) -> Any:
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, pickled, saved])
def test_copies_are_fused_alike_and_share_nothing(
    model: SAM2VideoPredictor, copy_of: Callable[[Any], Any]
) -> None:
    expected = run(model)
    changed = copy_of(model)
    replace(changed, "block", Lora)
    other = copy_of(changed)
    assert list(changed.unfused_parts()) == ["image_encoder.trunk.blocks.1"]
    assert list(other.unfused_parts()) == ["image_encoder.trunk.blocks.1"]
    assert model.unfused_parts() == copy_of(model).unfused_parts() == {}
    assert all(map(torch.equal, run(copy_of(model)), expected))
    assert all(map(torch.equal, run(other), run(changed)))
    assert other.sam_mask_decoder.options is other.options


def test_a_part_made_by_a_subclass_is_called(model: SAM2VideoPredictor) -> None:
    class OwnAttention(MemoryAttention):
        pass

    attention = OwnAttention(model.config).eval()
    attention.load_state_dict(model.memory_attention.state_dict())
    expected = run(model)
    model.memory_attention = attention
    assert "OwnAttention" in (model.reason_to_call() or "")
    assert_close(run(model), expected)


def test_the_known_modules_have_the_settings_that_are_compared() -> None:
    modules = [nn.LayerNorm(2), nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.MaxPool2d(2)]
    for module in [*modules, nn.GELU(), nn.Dropout()]:
        assert set(module_state.SETTINGS[type(module)]) <= set(vars(module))


def test_the_rate_of_stochastic_depth_rises_from_block_to_block() -> None:
    config = Sam2Config(stages=(1, 1, 2, 1), global_blocks=(), image_size=64, drop_path_rate=0.2)
    branches = [block.drop_path for block in Hiera(config).blocks]
    assert isinstance(branches[0], nn.Identity)
    assert [b.drop_prob for b in branches[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
