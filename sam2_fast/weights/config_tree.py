"""The official configuration of a model as nested dictionaries, derived from its architecture."""

from __future__ import annotations

from typing import Any

from sam2_fast.config import DECODER_OPTIONS, FIXED_SETTINGS, Options, Sam2Config

MODELING = "sam2.modeling"
_TRUNK_DEFAULTS = Sam2Config(
    stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), windows=(8, 4, 14, 7), pos_grid=(14, 14)
)
"""The default arguments of the official trunk, which configurations leave out."""

_FEATURE_SIZES = [64, 64]
"""Of 1024 pixels. A model of another size computes its own rotations."""

_OFFICIAL_DEFAULTS = Options(
    multimask_output_in_sam=False,
    multimask_output_for_tracking=False,
    multimask_min_pt_num=1,
    use_obj_ptrs_in_encoder=False,
    only_obj_ptrs_in_the_past_for_eval=False,
    sigmoid_scale_for_mem_enc=1.0,
    sigmoid_bias_for_mem_enc=0.0,
)
"""The options of a model without any in its configuration."""

_ALWAYS = ("multimask_max_pt_num",)
"""Options that configurations have although they are the default."""

_FIXED = (
    "use_mask_input_as_output_without_sam",
    "directly_add_no_mem_embed",
    "use_high_res_features_in_sam",
    "iou_prediction_use_sigmoid",
    "pred_obj_scores",
    "pred_obj_scores_mlp",
    "fixed_no_obj_ptr",
    "use_multimask_token_for_obj_ptr",
    "use_mlp_for_obj_ptr_proj",
)


def model_tree(config: Sam2Config, options: Options | None = None) -> dict[str, Any]:
    """The entry `model` of the official configuration of an architecture.

    A dictionary with `_target_` is an object: the path of its class, and its arguments. Values that
    are official defaults are left out where the official files leave them out.
    """
    tree: dict[str, Any] = {
        "_target_": f"{MODELING}.sam2_base.SAM2Base",
        "image_encoder": _image_encoder(config),
        "memory_attention": _memory_attention(config),
        "memory_encoder": _memory_encoder(config),
        "num_maskmem": config.num_maps,
        "image_size": config.image_size,
        **{name: FIXED_SETTINGS[name] for name in _FIXED},
        **_version_settings(config.version),
        **_options(options or Options()),
    }
    if config.decoder_mlp_dim != 2048:
        tree["decoder_mlp_dim"] = config.decoder_mlp_dim
    tree["compile_image_encoder"] = False
    return tree


def _version_settings(version: str) -> dict[str, bool]:
    if version == "2.0":
        return {"add_tpos_enc_to_obj_ptrs": False}
    return {
        "no_obj_embed_spatial": True,
        "add_tpos_enc_to_obj_ptrs": True,
        "proj_tpos_enc_in_obj_ptrs": True,
        "use_signed_tpos_enc_to_obj_ptrs": True,
    }


def _options(options: Options) -> dict[str, Any]:
    defaults = vars(_OFFICIAL_DEFAULTS)
    changed = {
        name: value
        for name, value in vars(options).items()
        if value != defaults[name] or name in _ALWAYS
    }
    extra = {name: changed.pop(name) for name in DECODER_OPTIONS if name in changed}
    return changed | ({"sam_mask_decoder_extra_args": extra} if extra else {})


def _position(channels: int) -> dict[str, Any]:
    return {
        "_target_": f"{MODELING}.position_encoding.PositionEmbeddingSine",
        "num_pos_feats": channels,
        "normalize": True,
        "scale": None,
        "temperature": 10000,
    }


def _image_encoder(config: Sam2Config) -> dict[str, Any]:
    names = {
        "stages": "stages",
        "global_blocks": "global_att_blocks",
        "pos_grid": "window_pos_embed_bkg_spatial_size",
        "windows": "window_spec",
    }
    trunk: dict[str, Any] = {
        "_target_": f"{MODELING}.backbones.hieradet.Hiera",
        "embed_dim": config.embed_dim,
        "num_heads": config.num_heads,
    }
    for field, name in names.items():
        value = getattr(config, field)
        if value != getattr(_TRUNK_DEFAULTS, field):
            trunk[name] = list(value)
    if config.drop_path_rate:
        trunk["drop_path_rate"] = config.drop_path_rate
    return {
        "_target_": f"{MODELING}.backbones.image_encoder.ImageEncoder",
        "scalp": 1,
        "trunk": trunk,
        "neck": {
            "_target_": f"{MODELING}.backbones.image_encoder.FpnNeck",
            "position_encoding": _position(config.hidden_dim),
            "d_model": config.hidden_dim,
            "backbone_channel_list": list(reversed(config.stage_dims)),
            "fpn_top_down_levels": [2, 3],
            "fpn_interp_model": "nearest",
        },
    }


def _memory_attention(config: Sam2Config) -> dict[str, Any]:
    rope = {
        "_target_": f"{MODELING}.sam.transformer.RoPEAttention",
        "rope_theta": 10000.0,
        "feat_sizes": _FEATURE_SIZES,
    }
    attention = {
        "embedding_dim": config.hidden_dim,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": config.dropout,
    }
    return {
        "_target_": f"{MODELING}.memory_attention.MemoryAttention",
        "d_model": config.hidden_dim,
        "pos_enc_at_input": True,
        "layer": {
            "_target_": f"{MODELING}.memory_attention.MemoryAttentionLayer",
            "activation": "relu",
            "dim_feedforward": config.memory_ffn_dim,
            "dropout": config.dropout,
            "pos_enc_at_attn": False,
            "self_attention": rope | attention,
            "d_model": config.hidden_dim,
            "pos_enc_at_cross_attn_keys": True,
            "pos_enc_at_cross_attn_queries": False,
            "cross_attention": {
                **rope,
                "rope_k_repeat": True,
                **attention,
                "kv_in_dim": config.memory_dim,
            },
        },
        "num_layers": config.memory_layers,
    }


def _memory_encoder(config: Sam2Config) -> dict[str, Any]:
    dim = config.hidden_dim
    block: dict[str, Any] = {
        "_target_": f"{MODELING}.memory_encoder.CXBlock",
        "dim": dim,
        "kernel_size": 7,
        "padding": 3,
        "layer_scale_init_value": 1e-6,
        "use_dwconv": True,
    }
    if config.fuser_dim != 4 * dim:
        block["hidden"] = config.fuser_dim
    downsampler: dict[str, Any] = {
        "_target_": f"{MODELING}.memory_encoder.MaskDownSampler",
        "kernel_size": 3,
        "stride": 2,
        "padding": 1,
    }
    tree: dict[str, Any] = {
        "_target_": f"{MODELING}.memory_encoder.MemoryEncoder",
        "out_dim": config.memory_dim,
        "position_encoding": _position(config.memory_dim),
        "mask_downsampler": downsampler,
        "fuser": {
            "_target_": f"{MODELING}.memory_encoder.Fuser",
            "layer": block,
            "num_layers": 2,
        },
    }
    if dim != 256:
        tree["in_dim"] = downsampler["embed_dim"] = dim
    return tree
