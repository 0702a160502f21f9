"""Parts built by the official arguments: ops compute those of the released models only."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sam2_fast.model.fusion import OpModule
from sam2_fast.model.hiera import Hiera, MultiScaleBlock
from sam2_fast.model.image_encoder import FpnNeck, ImageEncoder
from sam2_fast.model.mask_decoder import MaskDecoder
from sam2_fast.model.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2_fast.model.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2_fast.model.position import PositionEmbeddingSine
from sam2_fast.model.rope_attention import RoPEAttention
from sam2_fast.model.two_way_transformer import TwoWayTransformer
from sam2_fast.official.base import SAM2Base
from sam2_fast.video.predictor import SAM2VideoPredictor
from sam2_fast.weights.config_tree import model_tree
from sam2_fast.weights.instantiate import instantiate
from tests.model.parts import assert_close, run

RELEASED = dict(
    transformer_dim=64,
    use_high_res_features=True,
    iou_prediction_use_sigmoid=True,
    pred_obj_scores=True,
    pred_obj_scores_mlp=True,
    use_multimask_token_for_obj_ptr=True,
)
"""Settings of the mask decoder of all released models."""


def decoder(
    depth: int = 2, activation: type[nn.Module] = nn.ReLU, rate: int = 2, **changes: Any
) -> MaskDecoder:
    transformer = TwoWayTransformer(depth, 64, 8, 96, activation, rate)
    return MaskDecoder(transformer=transformer, **{**RELEASED, **changes})


def attention(
    layer: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
    cross: dict[str, Any] | None = None,
    **changes: Any,
) -> MemoryAttention:
    memories = {"kv_in_dim": 32, "rope_k_repeat": True} | (cross or {})
    settings = {
        "activation": "relu",
        "cross_attention": RoPEAttention(64, **memories),
        "d_model": 64,
        "dim_feedforward": 96,
        "dropout": 0.1,
        "pos_enc_at_attn": False,
        "pos_enc_at_cross_attn_keys": True,
        "pos_enc_at_cross_attn_queries": False,
        "self_attention": RoPEAttention(64, **own or {}),
    }
    built = MemoryAttentionLayer(**{**settings, **(layer or {})})
    whole = {"d_model": 64, "pos_enc_at_input": True, "layer": built, "num_layers": 2}
    return MemoryAttention(**{**whole, **changes})


def encoder(
    sampler: dict[str, Any] | None = None,
    block: dict[str, Any] | None = None,
    fuser: dict[str, Any] | None = None,
    out_dim: int = 32,
) -> MemoryEncoder:
    steps = {"kernel_size": 3, "stride": 2, "padding": 1} | (sampler or {})
    blocks = Fuser(CXBlock(64, **block or {}), 2, **fuser or {})
    position = PositionEmbeddingSine(out_dim)
    return MemoryEncoder(out_dim, MaskDownSampler(64, **steps), blocks, position, in_dim=64)


PARTS: dict[str, Callable[..., OpModule[Any]]] = {
    "block": partial(MultiScaleBlock, 16, 16, 2),
    "pooling block": partial(MultiScaleBlock, 16, 32, 2, q_stride=(2, 2)),
    "decoder": decoder,
    "attention": attention,
    "encoder": encoder,
}
SUPPORTED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in PARTS),
    ("block", {"mlp_ratio": 2.0, "window_size": 4, "norm_layer": "LayerNorm"}),
    ("decoder", {"iou_head_hidden_dim": 32}),
    ("attention", {"num_layers": 3}),
    ("encoder", {"block": {"hidden": 96}}),
]
OTHER: list[tuple[str, dict[str, Any], str]] = [
    ("block", {"act_layer": nn.ReLU}, "act_layer"),
    ("block", {"act_layer": partial(nn.GELU, approximate="tanh")}, "approximate"),
    ("block", {"norm_layer": nn.Identity}, "norm_layer"),
    ("block", {"norm_layer": partial(nn.LayerNorm, bias=False)}, "norm_bias"),
    ("block", {"q_stride": (2, 2)}, "q_stride"),
    ("pooling block", {"q_stride": (4, 4)}, "q_stride"),
    ("pooling block", {"q_stride": None}, "q_stride"),
    ("decoder", {"depth": 3}, "skip_first_layer_pe"),
    ("decoder", {"activation": nn.GELU}, "transformer.layers.0: activation"),
    ("decoder", {"rate": 4}, "transformer.layers.0: attention_downsample_rate"),
    ("decoder", {"num_multimask_outputs": 2}, "num_multimask_outputs"),
    ("decoder", {"iou_head_depth": 2}, "iou_head_depth"),
    *(
        ("decoder", {name: False}, name)
        for name in RELEASED
        if name not in ("transformer_dim", "pred_obj_scores_mlp")
    ),
    ("decoder", {"pred_obj_scores_mlp": False}, "pred_obj_scores_mlp"),
    ("attention", {"layer": {"activation": "gelu"}}, "layers.0: activation"),
    ("attention", {"layer": {"pos_enc_at_attn": True}}, "layers.0: pos_enc_at_attn"),
    ("attention", {"layer": {"pos_enc_at_cross_attn_keys": False}}, "pos_enc_at_cross_attn_keys"),
    ("attention", {"layer": {"pos_enc_at_cross_attn_queries": True}}, "cross_attn_queries"),
    ("attention", {"own": {"num_heads": 2}}, "layers.0.self_attn: num_heads"),
    ("attention", {"own": {"downsample_rate": 2}}, "layers.0.self_attn: internal_dim"),
    ("attention", {"cross": {"rope_theta": 99.0}}, "layers.0.cross_attn_image: rope_theta"),
    ("attention", {"cross": {"rope_k_repeat": False}}, "layers.0: rope_k_repeat"),
    ("attention", {"pos_enc_at_input": False}, "pos_enc_at_input"),
    ("attention", {"batch_first": False}, "batch_first"),
    ("encoder", {"sampler": {"kernel_size": 5, "padding": 2}}, "mask_downsampler: kernel_size"),
    ("encoder", {"sampler": {"stride": 4}}, "mask_downsampler: kernel_size"),
    ("encoder", {"sampler": {"activation": nn.ReLU}}, "mask_downsampler: activation"),
    ("encoder", {"block": {"kernel_size": 3, "padding": 1}}, "fuser.layers.0: kernel_size"),
    ("encoder", {"block": {"use_dwconv": False}}, "fuser.layers.0: groups"),
    ("encoder", {"block": {"layer_scale_init_value": 0.0}}, "fuser.layers.0: layer_scale"),
    ("encoder", {"fuser": {"input_projection": True, "dim": 64}}, "fuser: input_projection"),
    ("encoder", {"out_dim": 64}, "out_proj"),
]


@pytest.mark.parametrize(("name", "changes"), SUPPORTED)
def test_ops_compute_parts_with_the_settings_of_the_released_models(
    name: str, changes: dict[str, Any]
) -> None:
    part = PARTS[name](**changes).eval()
    assert part.reason_to_call() is None
    assert copy.deepcopy(part).reason_to_call() is None
    assert part.requires_grad_(False).op_weights() is not None


@pytest.mark.parametrize(("name", "changes", "reason"), OTHER)
def test_parts_with_other_settings_are_called(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    part = PARTS[name](**changes).eval()
    assert reason in (part.reason_to_call() or "")
    assert copy.deepcopy(part).reason_to_call() == part.reason_to_call()


def test_a_setting_that_was_changed_before_the_whole_was_built_is_noticed() -> None:
    layer = copy.deepcopy(attention().layers[0])
    layer.pos_enc_at_attn = True
    part = MemoryAttention(64, True, layer, 2).eval()
    assert part.reason_to_call() == "layers.0: pos_enc_at_attn is True, its op computes False"


def tree(model: SAM2Base, **changes: Any) -> dict[str, Any]:
    target = f"{type(model).__module__}.{type(model).__qualname__}"
    return {**model_tree(model.config, model.options), "_target_": target, **changes}


def test_ops_compute_a_model_that_is_built_from_parts(model: SAM2VideoPredictor) -> None:
    built = instantiate(tree(model)).eval()
    assert type(built) is SAM2VideoPredictor
    assert built.config == model.config and built.options == model.options
    built.load_state_dict(model.state_dict())
    assert built.unfused_parts() == {}
    assert built.reason_to_call() is None and built.encoder_reason_to_call() is None
    assert all(map(torch.equal, run(built), run(model)))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("image_encoder", "fpn_top_down_levels", [0, 1, 2, 3]),
        ("image_encoder", "fuse_type", "avg"),
        ("memory_attention", "pos_enc_at_attn", True),
        ("memory_encoder", "layer_scale_init_value", 0.0),
    ],
)
def test_a_model_with_another_part_computes_what_its_parts_compute(
    model: SAM2VideoPredictor, part: str, key: str, value: Any
) -> None:
    """Other results than without the change, and the same as those of all parts when called."""
    changed = tree(model)
    where = {
        "image_encoder": changed["image_encoder"]["neck"],
        "memory_attention": changed["memory_attention"]["layer"],
        "memory_encoder": changed["memory_encoder"]["fuser"]["layer"],
    }
    where[part][key] = value
    other = instantiate(changed).eval()
    state = model.state_dict()
    other.load_state_dict(state if key != "layer_scale_init_value" else other.state_dict())
    outputs = run(other)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert_close(outputs, run(other))
    finally:
        handle.remove()
    expected = run(model)
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Hiera(stages=(1, 1)), "window_spec: expected 2 windows"),
        (lambda: Hiera(q_pool=4), "q_pool: expected 0 to 3"),
        (
            lambda: FpnNeck(PositionEmbeddingSine(32), 32, [8], fuse_type="max"),
            "fuse_type: expected 'sum' or 'avg', got 'max'",
        ),
        (
            lambda: ImageEncoder(Hiera(16), FpnNeck(PositionEmbeddingSine(32), 32, [8])),
            "neck: expected backbone_channel_list=",
        ),
        (lambda: MaskDownSampler(total_stride=8), "total_stride: expected a power of the stride 4"),
        (lambda: Fuser(CXBlock(8), 1, input_projection=True), "dim: expected the channels"),
        (lambda: Fuser(nn.ModuleList([CXBlock(8)]), 2), "num_layers: expected 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build()


def test_a_trunk_loads_its_weights_from_a_file(tmp_path: Path) -> None:
    other = Hiera(embed_dim=8, stages=(1, 1, 1, 1), global_att_blocks=())
    state = {name: torch.full_like(x, 0.5) for name, x in other.state_dict().items()}
    stored = dict([*state.items()][:5])
    torch.save(stored, tmp_path / "few.pt")
    with torch.random.fork_rng():
        trunk = Hiera(
            embed_dim=8,
            stages=(1, 1, 1, 1),
            global_att_blocks=(),
            weights_path=str(tmp_path / "few.pt"),
        )
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, state[name]) == (name in stored)


@pytest.mark.reliability("F16", "38")
def test_weights_of_a_trunk_that_claim_memory_or_are_none_are_refused(tmp_path: Path) -> None:
    files = {
        "claims": {"a": torch.zeros(1).expand(2**31)},
        "other": [torch.zeros(1)],
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "code").write_bytes(pickle.dumps(print, 2))
    for name, reason in {"claims": "claims", "other": "a table", "code": "run code"}.items():
        with pytest.raises(ValueError, match=rf"weights_path: checkpoint .*{name}: .*{reason}"):
            Hiera(weights_path=tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        Hiera(weights_path=tmp_path / "missing.pt")
