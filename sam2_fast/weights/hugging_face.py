"""Official parameter names for those of Hugging Face's `Sam2VideoModel`.

It is the inverse of their `convert_sam2_video_to_hf.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

_WHOLE_NAMES = {
    "no_memory_embedding": "no_mem_embed",
    "no_memory_positional_encoding": "no_mem_pos_enc",
    "memory_temporal_positional_encoding": "maskmem_tpos_enc",
    "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
    "no_object_pointer": "no_obj_ptr",
    "prompt_encoder.shared_embedding.positional_embedding": (
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
}
_MLP_LAYERS = {"proj_in": "0", "layers.0": "1", "proj_out": "2"}
_MASK_EMBED = {"conv1": "0", "layer_norm1": "1", "conv2": "3", "layer_norm2": "4", "conv3": "6"}
_UPSCALE = {"upscale_conv1": "0", "upscale_layer_norm": "1", "upscale_conv2": "3"}


def _downsampler_step(layer: str) -> str:
    """Index in the official `nn.Sequential`, which also counts activations: "1.conv" is 3."""
    number, kind = layer.split(".")
    return str(3 * int(number) + (kind == "layer_norm"))


_PLACEHOLDERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "i": (r"\d+", str),
    "n": (r"\d", str),
    "module": (r"\w+", str),
    "path": (r".*", str),
    "head": (r"output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head", str),
    "mlp_layer": (r"proj_in|layers\.0|proj_out", _MLP_LAYERS.__getitem__),
    "mask_layer": (r"\w+", _MASK_EMBED.__getitem__),
    "upscale_layer": (r"upscale_\w+", _UPSCALE.__getitem__),
    "downsampler_layer": (r"\d+\.(?:conv|layer_norm)", _downsampler_step),
}
"""What a placeholder in a template matches, and the official name for the matched text."""

_Prefixes = tuple[str, str]
_TEMPLATES: dict[_Prefixes, tuple[tuple[str, str], ...]] = {
    ("vision_encoder.backbone.", "image_encoder.trunk."): (
        ("patch_embed.projection.", "patch_embed.proj."),
        ("blocks.{i}.layer_norm{n}.", "blocks.{i}.norm{n}."),
        ("blocks.{i}.mlp.proj_in.", "blocks.{i}.mlp.layers.0."),
        ("blocks.{i}.mlp.proj_out.", "blocks.{i}.mlp.layers.1."),
        ("", ""),
    ),
    ("vision_encoder.neck.", "image_encoder.neck."): (("convs.{i}.", "convs.{i}.conv."),),
    ("prompt_encoder.", "sam_prompt_encoder."): (
        ("mask_embed.{mask_layer}.", "mask_downscaling.{mask_layer}."),
        ("", ""),
    ),
    ("mask_decoder.", "sam_mask_decoder."): (
        ("{upscale_layer}.", "output_upscaling.{upscale_layer}."),
        ("{head}.{mlp_layer}.", "{head}.layers.{mlp_layer}."),
        ("transformer.layers.{i}.mlp.proj_in.", "transformer.layers.{i}.mlp.layers.0."),
        ("transformer.layers.{i}.mlp.proj_out.", "transformer.layers.{i}.mlp.layers.1."),
        ("transformer.{path}.o_proj.", "transformer.{path}.out_proj."),
        ("transformer.layers.{i}.layer_norm{n}.", "transformer.layers.{i}.norm{n}."),
        ("transformer.layer_norm_final_attn.", "transformer.norm_final_attn."),
        ("", ""),
    ),
    ("memory_attention.", "memory_attention."): (
        ("layers.{i}.{module}.o_proj.", "layers.{i}.{module}.out_proj."),
        ("layers.{i}.layer_norm{n}.", "layers.{i}.norm{n}."),
        ("layer_norm.", "norm."),
    ),
    ("memory_encoder.mask_downsampler.", "memory_encoder.mask_downsampler."): (
        ("final_conv.", "encoder.12."),
        ("layers.{downsampler_layer}.", "encoder.{downsampler_layer}."),
    ),
    ("memory_encoder.", "memory_encoder."): (
        ("feature_projection.", "pix_feat_proj."),
        ("projection.", "out_proj."),
    ),
    ("memory_encoder.memory_fuser.layers.{i}.", "memory_encoder.fuser.layers.{i}."): (
        ("depthwise_conv.", "dwconv."),
        ("pointwise_conv{n}.", "pwconv{n}."),
        ("layer_norm.", "norm."),
        ("scale", "gamma"),
    ),
    ("temporal_positional_encoding_projection_layer.", "obj_ptr_tpos_proj."): (("", ""),),
    ("object_pointer_proj.", "obj_ptr_proj."): (("{mlp_layer}.", "layers.{mlp_layer}."),),
}
"""(Hugging Face, official) prefixes -> templates after them; the first match counts.

A template that ends with a dot is for the start of a name, another one for the whole name.
"""


def _pattern(template: str) -> re.Pattern[str]:
    pattern = "^"
    for index, part in enumerate(re.split(r"\{(\w+)\}", template)):
        is_placeholder = index % 2 == 1
        pattern += f"(?P<{part}>{_PLACEHOLDERS[part][0]})" if is_placeholder else re.escape(part)
    return re.compile(pattern if template.endswith(".") else pattern + "$")


_RULES = [
    (_pattern(prefix + template), official_prefix + official)
    for (prefix, official_prefix), templates in _TEMPLATES.items()
    for template, official in templates
]


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether the names of a state dict are those of Hugging Face."""
    return any(k.startswith("vision_encoder.") for k in state)


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with official names.

    Unknown names are not changed, so that strict loading reports them.
    """
    official: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # a second copy of the prompt encoder's matrix
        if name == "prompt_encoder.point_embed.weight":
            for i in range(value.shape[0]):
                key = f"sam_prompt_encoder.point_embeddings.{i}.weight"
                official[key] = value[i : i + 1]
        else:
            official[_official_name(name)] = value
    return official


def _official_name(name: str) -> str:
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    for pattern, official in _RULES:
        if match := pattern.match(name):
            texts = {key: _PLACEHOLDERS[key][1](text) for key, text in match.groupdict().items()}
            return official.format(**texts) + name[match.end() :]
    return name
