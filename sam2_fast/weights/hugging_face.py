"""Hugging Face `Sam2VideoModel` parameter names to the official ones (inverse of their
`convert_sam2_video_to_hf.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

_ENDS = {"proj_in": "0", "layers.0": "1", "proj_out": "2"}
_TOP = {
    "no_memory_embedding": "no_mem_embed",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
    "no_object_pointer": "no_obj_ptr",
    "prompt_encoder.shared_embedding.positional_embedding": (
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
}
_MASK_EMBED = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
_UPSCALE = {"upscale_conv1": "0", "upscale_layer_norm": "1", "upscale_conv2": "3"}

_Rule = tuple[str, str | Callable[[re.Match[str]], str]]
_RULES: list[_Rule] = [
    (
        r"^vision_encoder\.backbone\.patch_embed\.projection\.",
        "image_encoder.trunk.patch_embed.proj.",
    ),
    (
        r"^vision_encoder\.backbone\.(blocks\.\d+)\.layer_norm(\d)\.",
        r"image_encoder.trunk.\1.norm\2.",
    ),
    (
        r"^vision_encoder\.backbone\.(blocks\.\d+)\.mlp\.proj_in\.",
        r"image_encoder.trunk.\1.mlp.layers.0.",
    ),
    (
        r"^vision_encoder\.backbone\.(blocks\.\d+)\.mlp\.proj_out\.",
        r"image_encoder.trunk.\1.mlp.layers.1.",
    ),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (
        r"^prompt_encoder\.mask_embed\.(\w+)\.",
        lambda m: f"sam_prompt_encoder.mask_downscaling.{_MASK_EMBED[m[1]]}.",
    ),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (
        r"^mask_decoder\.(upscale_\w+)\.",
        lambda m: f"sam_mask_decoder.output_upscaling.{_UPSCALE[m[1]]}.",
    ),
    (
        r"^mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)"
        r"\.(proj_in|layers\.0|proj_out)\.",
        lambda m: f"sam_mask_decoder.{m[1]}.layers.{_ENDS[m[2]]}.",
    ),
    (
        r"^mask_decoder\.(transformer\.layers\.\d+)\.mlp\.proj_in\.",
        r"sam_mask_decoder.\1.mlp.layers.0.",
    ),
    (
        r"^mask_decoder\.(transformer\.layers\.\d+)\.mlp\.proj_out\.",
        r"sam_mask_decoder.\1.mlp.layers.1.",
    ),
    (r"^mask_decoder\.(transformer\..*)\.o_proj\.", r"sam_mask_decoder.\1.out_proj."),
    (
        r"^mask_decoder\.(transformer\.layers\.\d+)\.layer_norm(\d)\.",
        r"sam_mask_decoder.\1.norm\2.",
    ),
    (
        r"^mask_decoder\.transformer\.layer_norm_final_attn\.",
        "sam_mask_decoder.transformer.norm_final_attn.",
    ),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^memory_attention\.(layers\.\d+\.\w+)\.o_proj\.", r"memory_attention.\1.out_proj."),
    (r"^memory_attention\.(layers\.\d+)\.layer_norm(\d)\.", r"memory_attention.\1.norm\2."),
    (r"^memory_attention\.layer_norm\.", "memory_attention.norm."),
    (
        r"^memory_encoder\.mask_downsampler\.final_conv\.",
        "memory_encoder.mask_downsampler.encoder.12.",
    ),
    (
        r"^memory_encoder\.mask_downsampler\.layers\.(\d+)\.(conv|layer_norm)\.",
        lambda m: (
            f"memory_encoder.mask_downsampler.encoder.{3 * int(m[1]) + (m[2] == 'layer_norm')}."
        ),
    ),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (
        r"^memory_encoder\.memory_fuser\.(layers\.\d+)\.depthwise_conv\.",
        r"memory_encoder.fuser.\1.dwconv.",
    ),
    (
        r"^memory_encoder\.memory_fuser\.(layers\.\d+)\.pointwise_conv(\d)\.",
        r"memory_encoder.fuser.\1.pwconv\2.",
    ),
    (
        r"^memory_encoder\.memory_fuser\.(layers\.\d+)\.layer_norm\.",
        r"memory_encoder.fuser.\1.norm.",
    ),
    (r"^memory_encoder\.memory_fuser\.(layers\.\d+)\.scale$", r"memory_encoder.fuser.\1.gamma"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (
        r"^object_pointer_proj\.(proj_in|layers\.0|proj_out)\.",
        lambda m: f"obj_ptr_proj.layers.{_ENDS[m[1]]}.",
    ),
]


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the Hugging Face layout."""
    return any(k.startswith("vision_encoder.") for k in state)


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate every name; unknown ones pass unchanged, so that a strict load names them."""
    official: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's matrix
        if name == "prompt_encoder.point_embed.weight":
            official.update(
                {
                    f"sam_prompt_encoder.point_embeddings.{i}.weight": value[i : i + 1]
                    for i in range(value.shape[0])
                }
            )
        else:
            official[_official_name(name)] = value
    return official


def _official_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    for pattern, target in _RULES:
        renamed, count = re.subn(pattern, target, name)
        if count:
            return renamed
    return name
