"""The architecture of a model, and the inference options, which change no weight."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields, replace
from typing import Any

NO_OBJECT_LOGIT = -1024.0
"""Mask logit of an object that is absent from a frame (official `NO_OBJ_SCORE`)."""

MAX_IMAGE_SIZE = 2**14
"""Largest side of the images that a model computes with, in pixels."""

_LARGEST = 2**20
_WIDTHS = (
    *("embed_dim", "num_heads", "hidden_dim", "memory_dim", "memory_layers", "memory_ffn_dim"),
    *("decoder_mlp_dim", "num_maps", "fuser_dim"),
)


@dataclass(frozen=True)
class Sam2Config:
    """Architecture of a SAM 2 model.

    The released models differ in the first seven fields only. image_size: pixels of a side, a
    multiple of 32. Grids and windows are in tokens of their stage. drop_path_rate and dropout are
    probabilities in training mode: of dropping a branch in the last block of the image encoder
    (less in earlier ones), and of dropping a value in memory attention.
    """

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    pos_grid: tuple[int, int] = (7, 7)
    version: str = "2.1"
    image_size: int = 1024
    hidden_dim: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    memory_ffn_dim: int = 2048
    decoder_mlp_dim: int = 2048
    num_maps: int = 7
    fuser_dim: int = 1024
    drop_path_rate: float = 0.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.version not in ("2.0", "2.1"):
            raise ValueError(f"version: expected '2.0' or '2.1', got {self.version!r}")
        if not _is_whole(self.image_size, 32, MAX_IMAGE_SIZE) or self.image_size % 32:
            raise ValueError(
                f"image_size: expected a positive multiple of 32 pixels up to {MAX_IMAGE_SIZE}, "
                f"got {self.image_size!r}"
            )
        for name in ("stages", "windows", "global_blocks", "pos_grid"):
            value = getattr(self, name)
            lowest = 0 if name == "global_blocks" else 1
            length = {"pos_grid": 2, "global_blocks": None}.get(name, 4)
            if (
                not isinstance(value, (tuple, list))
                or len(value) != (len(value) if length is None else length)
                or not all(_is_whole(number, lowest) for number in value)
            ):
                raise ValueError(
                    f"{name}: expected {length or 'any number of'} entries, whole numbers from "
                    f"{lowest}, got {value!r}"
                )
        for name in _WIDTHS:
            if not _is_whole(getattr(self, name), 1):
                raise ValueError(
                    f"{name}: expected a whole number from 1 to {_LARGEST}, got "
                    f"{getattr(self, name)!r}"
                )
        for name in ("drop_path_rate", "dropout"):
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: expected at least 0 and below 1, got {value!r}")
        if self.hidden_dim % self.memory_dim or self.hidden_dim % 8:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of 8 and of memory_dim "
                f"{self.memory_dim}"
            )

    @property
    def grid(self) -> int:
        """Side of the low-resolution feature map (stride 16), in tokens."""
        return self.image_size // 16

    @property
    def tokens_per_pointer(self) -> int:
        """Memory tokens of an object pointer (4)."""
        return self.hidden_dim // self.memory_dim

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of the four trunk stages."""
        return tuple(self.embed_dim * 2**i for i in range(4))


def _is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _is_whole(value: object, lowest: int, highest: int = _LARGEST) -> bool:
    """Whether a value is an integer, of any library, between two bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return False
    return lowest <= operator.index(value) <= highest


PRESETS: dict[str, Sam2Config] = {
    "tiny": Sam2Config(),
    "small": Sam2Config(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "base_plus": Sam2Config(
        embed_dim=112,
        num_heads=2,
        stages=(2, 3, 16, 3),
        global_blocks=(12, 16, 20),
        pos_grid=(14, 14),
    ),
    "large": Sam2Config(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_blocks=(23, 33, 43),
        windows=(8, 4, 16, 8),
    ),
}
"""The four released sizes, in version 2.1; `preset` also returns version 2.0."""

NANO = Sam2Config(
    embed_dim=56,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    windows=(8, 4, 8, 8),
    pos_grid=(8, 8),
    image_size=256,
    memory_layers=2,
    memory_ffn_dim=256,
    decoder_mlp_dim=128,
    fuser_dim=256,
)
"""A small model of this project; the package contains its weights (docs/nano.md)."""


def preset(name: str, version: str = "2.1", image_size: int | None = None) -> Sam2Config:
    """One of the eight released architectures, or "nano".

    name: "tiny", "small", "base_plus", "large", or "nano" (version 2.1 only).
    image_size: None: that of training, 1024 pixels, or 256 for nano.
    """
    known = PRESETS | {"nano": NANO}
    if name not in known:
        raise ValueError(f"name: expected one of {sorted(known)}, got {name!r}")
    if name == "nano" and version != NANO.version:
        raise ValueError(f"version: expected '{NANO.version}' for nano, got {version!r}")
    return replace(known[name], version=version, image_size=image_size or known[name].image_size)


_LOWEST = {
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 0,
    "memory_temporal_stride_for_eval": 1,
    "max_cond_frames_in_attn": -1,
    "max_obj_ptrs_in_encoder": 0,
    "fill_hole_area": 0,
}


@dataclass
class Options:
    """Inference options of the official configurations, under their official names.

    No option changes a weight.
    """

    dynamic_multimask_via_stability: bool = False
    dynamic_multimask_stability_delta: float = 0.05
    dynamic_multimask_stability_thresh: float = 0.98
    multimask_output_in_sam: bool = True
    multimask_output_for_tracking: bool = True
    multimask_min_pt_num: int = 0
    multimask_max_pt_num: int = 1
    binarize_mask_from_pts_for_mem_enc: bool = False
    non_overlap_masks_for_mem_enc: bool = False
    memory_temporal_stride_for_eval: int = 1
    max_cond_frames_in_attn: int = -1
    use_obj_ptrs_in_encoder: bool = True
    max_obj_ptrs_in_encoder: int = 16
    only_obj_ptrs_in_the_past_for_eval: bool = True
    sigmoid_scale_for_mem_enc: float = 20.0
    sigmoid_bias_for_mem_enc: float = -10.0
    fill_hole_area: int = 0
    non_overlap_masks: bool = False
    clear_non_cond_mem_around_input: bool = False
    add_all_frames_to_correct_as_cond: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(option.default, float) and not _is_number(value):
                raise ValueError(f"option {option.name}: expected a finite number, got {value!r}")
            lowest = _LOWEST.get(option.name)
            if lowest is not None and not _is_whole(value, lowest):
                raise ValueError(
                    f"option {option.name}: expected a whole number from {lowest} to {_LARGEST}, "
                    f"got {value!r}"
                )

    def use_multimask(self, num_points: int, is_initial: bool) -> bool:
        """Whether three masks are decoded (official rule).

        is_initial: whether the frame is decoded without memories.
        """
        enabled = self.multimask_output_in_sam and (
            is_initial or self.multimask_output_for_tracking
        )
        return enabled and self.multimask_min_pt_num <= num_points <= self.multimask_max_pt_num

    @property
    def memory_mask_scale(self) -> tuple[float, float]:
        """Factor and offset of the mask probabilities that the memory encoder reads."""
        return self.sigmoid_scale_for_mem_enc, self.sigmoid_bias_for_mem_enc

    def updated(self, **changes: Any) -> Options:
        """A copy with changed options. Raises ValueError for unknown names and wrong types."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in changes.items():
            if name not in known:
                raise ValueError(f"option {name!r} is unknown; expected one of {sorted(known)}")
            kind = type(known[name])
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                changes[name] = float(value)
            elif type(value) is not kind:
                raise ValueError(f"option {name}: expected {kind.__name__}, got {value!r}")
        return replace(self, **changes)


FIXED_SETTINGS: dict[str, Any] = {
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "iou_prediction_use_sigmoid": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "soft_no_obj_ptr": False,
    "use_multimask_token_for_obj_ptr": True,
    "use_mlp_for_obj_ptr_proj": True,
    "use_mask_input_as_output_without_sam": True,
    "num_feature_levels": 3,
    "backbone_stride": 16,
}
"""Settings of the official model with one value in every released model, the only one accepted."""

VERSION_SETTINGS = (
    "add_tpos_enc_to_obj_ptrs",
    "proj_tpos_enc_in_obj_ptrs",
    "use_signed_tpos_enc_to_obj_ptrs",
)
"""Settings of the official model that are True in version 2.1 and False in version 2.0."""

VIDEO_SETTINGS = (
    "fill_hole_area",
    "non_overlap_masks",
    "clear_non_cond_mem_around_input",
    "add_all_frames_to_correct_as_cond",
)
"""Options that are arguments of the official video predictor, and not of its base class."""

DECODER_OPTIONS = (
    "dynamic_multimask_via_stability",
    "dynamic_multimask_stability_delta",
    "dynamic_multimask_stability_thresh",
)
"""Options that are attributes of the mask decoder."""

IMAGE_POSTPROCESSING: dict[str, Any] = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""Options that the official builders set if `apply_postprocessing` is True."""

VIDEO_POSTPROCESSING: dict[str, Any] = {
    **IMAGE_POSTPROCESSING,
    "binarize_mask_from_pts_for_mem_enc": True,
    "fill_hole_area": 8,
}
