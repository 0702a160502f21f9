"""When modules are examined, and what besides their layers decides whether an op computes them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_fast.config import Sam2Config
from sam2_fast.model import fusion
from sam2_fast.model.hiera import Hiera, MultiScaleBlock
from sam2_fast.model.layers import MLP, DropPath
from sam2_fast.model.memory_attention import MemoryAttention
from sam2_fast.ops.core import module_state
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.model.parts import LAYERS, PARTS, Lora, assert_close, replace, run


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
    block = MultiScaleBlock(12, 12, 2, drop_path=0.5, window_size=4)
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
    model.forward_image(torch.zeros(1, 3, 64, 64))  # caches positions
    changed = copy_of(model)
    changed.forward_image(torch.zeros(1, 3, 64, 64))
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

    attention = OwnAttention.from_config(model.config).eval()
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
    branches = [block.drop_path for block in Hiera.from_config(config).blocks]
    assert isinstance(branches[0], nn.Identity)
    assert [b.drop_prob for b in branches[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
