"""Makes the official package importable so that its masks can be compared: on a CPU, in float32."""

from __future__ import annotations

import functools
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Float32Torch(types.ModuleType):
    """torch, but for the dtype of memories."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def fill_holes(masks: torch.Tensor, max_area: int) -> torch.Tensor:
    """Logits whose background regions of at most `max_area` pixels are 0.1."""
    from scipy import ndimage

    out = masks.clone()
    for mask in out[:, 0]:
        labels, _ = ndimage.label((mask <= 0).numpy(), np.ones((3, 3)))
        areas = np.bincount(labels.ravel())
        mask[torch.from_numpy((labels > 0) & (areas[labels] <= max_area))] = 0.1
    return out


def prepare(peers: str, tools: str) -> None:
    """Import the official package from the folder `peers`.

    Three things are changed so that masks can be compared: models go to the CPU (the default is
    "cuda"), memories stay float32 (they are always bfloat16), and holes are filled by SciPy (they
    are not filled at all if the official extension is absent). Child processes import it, too.
    """
    sys.path[:0] = [peers, tools]
    children = str(Path(__file__).with_name("children"))
    entries = [children, peers, tools, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(entries)
    import official_peer

    official_peer._define_missing_operators()
    import sam2.build_sam
    import sam2.sam2_video_predictor

    sam2.build_sam.build_sam2_video_predictor = functools.partial(
        sam2.build_sam.build_sam2_video_predictor, device="cpu"
    )
    sam2.sam2_video_predictor.torch = Float32Torch("torch")
    sam2.sam2_video_predictor.fill_holes_in_mask_scores = fill_holes
