"""Names of official modules: what they import from each other, and what stands for them here.

`tests/compat/test_names.py` compares the tables with the official package.
"""

from __future__ import annotations

_AMG = (
    "area_from_rle batch_iterator batched_mask_to_box box_xyxy_to_xywh "
    "build_all_layer_point_grids calculate_stability_score coco_encode_rle generate_crop_boxes "
    "is_box_near_crop_edge mask_to_rle_pytorch MaskData remove_small_regions rle_to_mask "
    "uncrop_boxes_xyxy uncrop_masks uncrop_points"
)
_VIDEO = {
    "sam2.modeling.sam2_base": "NO_OBJ_SCORE SAM2Base",
    "sam2.utils.misc": "concat_points fill_holes_in_mask_scores load_video_frames",
}

_MISC = (
    "_load_img_as_tensor",
    "AsyncVideoFrameLoader",
    "get_connected_components",
    "load_video_frames_from_jpg_images",
    "load_video_frames_from_video_file",
    "tqdm",
)

IMPORTED: dict[str, dict[str, str]] = {
    "sam2.automatic_mask_generator": {
        "sam2.modeling.sam2_base": "SAM2Base",
        "sam2.sam2_image_predictor": "SAM2ImagePredictor",
        "sam2.utils.amg": _AMG,
    },
    "sam2.modeling.backbones.hieradet": {
        "sam2.modeling.backbones.utils": "PatchEmbed window_partition window_unpartition",
        "sam2.modeling.sam2_utils": "DropPath MLP",
    },
    "sam2.modeling.memory_attention": {
        "sam2.modeling.sam.transformer": "RoPEAttention",
        "sam2.modeling.sam2_utils": "get_activation_fn get_clones",
    },
    "sam2.modeling.memory_encoder": {
        "sam2.modeling.sam2_utils": "DropPath get_clones LayerNorm2d",
    },
    "sam2.modeling.sam.mask_decoder": {"sam2.modeling.sam2_utils": "LayerNorm2d MLP"},
    "sam2.modeling.sam.prompt_encoder": {
        "sam2.modeling.position_encoding": "PositionEmbeddingRandom",
        "sam2.modeling.sam2_utils": "LayerNorm2d",
    },
    "sam2.modeling.sam.transformer": {
        "sam2.modeling.position_encoding": "apply_rotary_enc compute_axial_cis",
        "sam2.modeling.sam2_utils": "MLP",
    },
    "sam2.modeling.sam2_base": {
        "sam2.modeling.sam.mask_decoder": "MaskDecoder",
        "sam2.modeling.sam.prompt_encoder": "PromptEncoder",
        "sam2.modeling.sam.transformer": "TwoWayTransformer",
        "sam2.modeling.sam2_utils": "get_1d_sine_pe MLP select_closest_cond_frames",
    },
    "sam2.modeling.sam2_utils": {"sam2.utils.misc": "mask_to_box"},
    "sam2.sam2_image_predictor": {
        "sam2.modeling.sam2_base": "SAM2Base",
        "sam2.utils.transforms": "SAM2Transforms",
    },
    "sam2.sam2_video_predictor": _VIDEO,
    "sam2.sam2_video_predictor_legacy": _VIDEO,
}
"""Official module -> official modules that it imports names from -> the names."""

_VIDEO_TARGETS = {
    "tqdm": "video.progress",
    "load_video_frames": "video.program_frames",
    "concat_points": "official.predictor_steps",
    "fill_holes_in_mask_scores": "official.predictor_steps",
    "NO_OBJ_SCORE": "video.stored official.predictor_steps",
    "SAM2VideoPredictor": "build_sam",
}

TARGETS: dict[str, dict[str, str]] = {
    "sam2.automatic_mask_generator": {
        "batched_nms": "image.cleanup",
        "area_from_rle": "image.mask_table",
        "batch_iterator": "image.automatic",
        "box_xyxy_to_xywh": "image.mask_table",
        "coco_encode_rle": "image.mask_table:compress_rle",
        "rle_to_mask": "image.mask_table",
        "build_all_layer_point_grids": "image.generator_options",
        "generate_crop_boxes": "image.automatic",
        "is_box_near_crop_edge": "image.automatic",
        "MaskData": "image.automatic",
        "SAM2ImagePredictor": "image.automatic",
        "uncrop_boxes_xyxy": "image.automatic",
        "uncrop_points": "image.automatic",
    },
    "sam2.build_sam": {
        "HF_MODEL_ID_TO_FILENAMES": "compat.build_sam weights.hub",
        "build_sam2": "compat.build_sam",
        "build_sam2_video_predictor": "compat.build_sam",
        "_hf_download": "compat.build_sam",
        "_load_checkpoint": "compat.build_sam",
        "compose": "compat.build_sam:_compose",
        "instantiate": "compat.build_sam:_instantiate",
        "OmegaConf": "compat.build_sam:_omega_conf",
    },
    "sam2.modeling.backbones.hieradet": {
        "do_pool": "model.hiera",
        "window_partition": "model.hiera",
        "window_unpartition": "model.hiera",
        "F": "model.hiera",
        "DropPath": "model.hiera",
        "Hiera": "model.image_encoder",
        "MLP": "model.hiera",
        "MultiScaleAttention": "model.hiera",
        "MultiScaleBlock": "model.hiera",
        "PatchEmbed": "model.hiera",
    },
    "sam2.modeling.backbones.image_encoder": {
        "F": "model.image_encoder",
        "FpnNeck": "model.image_encoder",
        "ImageEncoder": "model.sam2",
    },
    "sam2.modeling.memory_attention": {
        "MemoryAttention": "model.sam2",
        "MemoryAttentionLayer": "model.memory_attention",
        "get_activation_fn": "model.memory_attention",
    },
    "sam2.modeling.memory_encoder": {
        "CXBlock": "model.memory_encoder",
        "DropPath": "model.memory_encoder",
        "Fuser": "model.memory_encoder",
        "LayerNorm2d": "model.memory_encoder",
        "MaskDownSampler": "model.memory_encoder",
        "MemoryEncoder": "model.sam2",
    },
    "sam2.modeling.position_encoding": {
        "init_t_xy": "model.rotary",
        "reshape_for_broadcast": "model.rotary",
        "PositionEmbeddingSine": "model.image_encoder model.memory_encoder",
    },
    "sam2.modeling.sam.mask_decoder": {
        "LayerNorm2d": "model.mask_decoder",
        "MLP": "model.mask_decoder",
    },
    "sam2.modeling.sam.prompt_encoder": {
        "LayerNorm2d": "model.prompt_encoder",
        "PositionEmbeddingRandom": "model.prompt_encoder",
    },
    "sam2.modeling.sam.transformer": {
        "apply_rotary_enc": "model.rope_attention",
        "compute_axial_cis": "model.rope_attention",
        "F": "model.two_way_transformer",
        "Attention": "model.two_way_transformer",
        "MLP": "model.two_way_transformer",
        "RoPEAttention": "model.memory_attention",
        "TwoWayAttentionBlock": "model.two_way_transformer",
    },
    "sam2.modeling.sam2_base": {
        "get_1d_sine_pe": "model.sam2",
        "select_closest_cond_frames": "official.closest_frames",
        "NO_OBJ_SCORE": "official.steps",
        "MaskDecoder": "model.sam2",
        "MLP": "model.sam2",
        "PromptEncoder": "model.sam2",
        "SAM2Base": "build_sam",
        "TwoWayTransformer": "model.mask_decoder",
    },
    "sam2.modeling.sam2_utils": {
        "sample_one_point_from_error_center": "data.clicks",
        "sample_random_points_from_errors": "data.clicks",
    },
    "sam2.sam2_image_predictor": {"SAM2Transforms": "image.predictor"},
    "sam2.sam2_video_predictor": _VIDEO_TARGETS,
    "sam2.sam2_video_predictor_legacy": {
        name: target for name, target in _VIDEO_TARGETS.items() if name != "SAM2VideoPredictor"
    },
    "sam2.utils.amg": {"build_point_grid": "image.crops"},
    "sam2.utils.misc": dict.fromkeys(_MISC, "compat.utils.misc"),
}
"""Official module -> name -> our modules below `sam2_fast` that look it up at each call."""

FREE_NAMES: dict[str, str] = {
    "sam2.automatic_mask_generator": "SAM2AutomaticMaskGenerator SAM2Base",
    "sam2.modeling.backbones.utils": "PatchEmbed window_partition window_unpartition",
    "sam2.modeling.memory_attention": "RoPEAttention",
    "sam2.modeling.position_encoding": (
        "apply_rotary_enc compute_axial_cis PositionEmbeddingRandom"
    ),
    "sam2.modeling.sam.mask_decoder": "MaskDecoder",
    "sam2.modeling.sam.prompt_encoder": "PromptEncoder",
    "sam2.modeling.sam.transformer": "TwoWayTransformer",
    "sam2.modeling.sam2_utils": (
        "DropPath get_1d_sine_pe get_activation_fn get_clones get_next_point LayerNorm2d MLP "
        "sample_box_points select_closest_cond_frames"
    ),
    "sam2.sam2_image_predictor": "SAM2Base SAM2ImagePredictor",
    "sam2.sam2_video_predictor": "SAM2Base SAM2VideoPredictorVOS",
    "sam2.sam2_video_predictor_legacy": "SAM2Base SAM2VideoPredictor",
    "sam2.utils.amg": f"{_AMG} MaskData",
    "sam2.utils.misc": (
        "concat_points fill_holes_in_mask_scores get_sdpa_settings load_video_frames mask_to_box"
    ),
    "sam2.utils.transforms": "SAM2Transforms",
}
"""Official module -> names that official code does not look up there after its import."""
