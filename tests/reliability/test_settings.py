"""Values that no model can work with are refused when it is built, with their key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sam2_fast.build_sam import build_sam2
from sam2_fast.config import Options, Sam2Config

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64, memory_layers=1
)
WRONG = [
    "image_size=512.0",
    "image_size=1e9",
    "image_size=1000000000",
    "image_size=abc",
    "image_size=null",
    "image_size=[64]",
    "image_size=true",
    "image_size=-64",
    "image_size=0",
    "image_size=nan",
    "image_encoder.trunk.drop_path_rate=nan",
    "image_encoder.trunk.drop_path_rate=abc",
    "memory_temporal_stride_for_eval=0",
    "memory_temporal_stride_for_eval=-1",
    "memory_temporal_stride_for_eval=1.5",
    "fill_hole_area=-5",
    "fill_hole_area=1e9",
    "max_obj_ptrs_in_encoder=-1",
    "max_cond_frames_in_attn=-2",
    "multimask_max_pt_num=-1",
    "sigmoid_scale_for_mem_enc=inf",
    "sigmoid_bias_for_mem_enc=nan",
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=nan",
    "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=inf",
    "multimask_output_in_sam=1",
]


# With a part as well, the model is built from the tree of the official configuration.
@pytest.mark.reliability("F19")
@pytest.mark.parametrize("part", [[], ["++model.memory_attention.num_layers=1"]])
@pytest.mark.parametrize("text", WRONG)
def test_unusable_overrides_are_refused_with_their_key(text: str, part: list[str]) -> None:
    key = text.partition("=")[0].rpartition(".")[2]
    with pytest.raises(ValueError, match=key):
        build_sam2(SMALL, device="cpu", hydra_overrides_extra=[f"++model.{text}", *part])


@pytest.mark.reliability("F19")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 96.0),
        ("image_size", 2**30),
        ("embed_dim", 0),
        ("memory_dim", 0),
        ("memory_layers", "4"),
        ("memory_ffn_dim", 10**30),
        ("num_maps", -1),
        ("stages", (1, 1, 1)),
        ("stages", (1, 1, 1, 0)),
        ("windows", "8448"),
        ("pos_grid", (7,)),
        ("global_blocks", (-1,)),
        ("dropout", float("nan")),
        ("dropout", "half"),
    ],
)
def test_unusable_architectures_are_refused_with_the_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        replace(SMALL, **{name: value})


@pytest.mark.reliability("F19")
def test_unusable_options_are_refused_by_the_constructor_too() -> None:
    for name, value in (("fill_hole_area", -5), ("max_obj_ptrs_in_encoder", -1)):
        with pytest.raises(ValueError, match=f"option {name}"):
            Options(**{name: value})
