"""run_with_official.py PEERS TOOLS SCRIPT ARGUMENTS...: run a program with the official package, on
a CPU, in float32.

Three things are bent so that masks can be compared: models go to the CPU (the default is "cuda"),
memories stay float32 (they are always bfloat16), and holes are filled by SciPy where the official
extension is absent (they would not be filled at all).
"""

from __future__ import annotations

import functools
import runpy
import sys
import types
from typing import Any

import numpy as np
import torch

peers, tools, script = sys.argv[1:4]
sys.path[:0] = [peers, tools]
import official_peer  # noqa: E402

official_peer._define_missing_operators()
import sam2.build_sam  # noqa: E402
import sam2.sam2_video_predictor  # noqa: E402
from scipy import ndimage  # noqa: E402


class Float32Torch(types.ModuleType):
    """torch, but for the dtype of memories."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def fill_holes(masks: torch.Tensor, max_area: int) -> torch.Tensor:
    out = masks.clone()
    for mask in out[:, 0]:
        labels, _ = ndimage.label((mask <= 0).numpy(), np.ones((3, 3)))
        areas = np.bincount(labels.ravel())
        mask[torch.from_numpy((labels > 0) & (areas[labels] <= max_area))] = 0.1
    return out


sam2.build_sam.build_sam2_video_predictor = functools.partial(
    sam2.build_sam.build_sam2_video_predictor, device="cpu"
)
sam2.sam2_video_predictor.torch = Float32Torch("torch")
sam2.sam2_video_predictor.fill_holes_in_mask_scores = fill_holes
sys.argv = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
