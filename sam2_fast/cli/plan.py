"""What a tracking run does: which frames in which order, into which files, by which settings."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sam2_fast
from sam2_fast.cli import options as o
from sam2_fast.cli.prompts import Prompt
from sam2_fast.cli.results import MASKS, RUN
from sam2_fast.cli.runs import identity
from sam2_fast.cli.weights import WeightsChoice
from sam2_fast.io.mask_png import Mask


@dataclass(frozen=True)
class Plan:
    """What a run tracks, and what it writes. num_frames: of the video."""

    directory: Path
    video: Path
    prompts: list[Prompt]
    num_frames: int
    reverse: bool
    both: bool
    max_frames: int | None
    format: o.Format
    overlay: o.VideoFormat | None

    @property
    def start(self) -> int:
        """The first prompted frame."""
        return self.prompts[0].frame

    @property
    def forward(self) -> range:
        """The frames of the pass to the end, in order."""
        count = self.num_frames if self.max_frames is None else self.max_frames
        end = min(self.start + count, self.num_frames)
        return range(self.start, self.start if self.reverse else end)

    @property
    def backward(self) -> range:
        """The frames of the pass to the beginning, in order, without those of `forward`."""
        count = self.num_frames if self.max_frames is None else self.max_frames
        if not (self.reverse or self.both):
            return range(0)
        return range(self.start - self.both, max(self.start - count, -1), -1)

    @property
    def order(self) -> list[int]:
        """All frames in the order of tracking."""
        return [*self.forward, *self.backward]

    def is_finished_before(self, frame: int, done: set[int]) -> bool:
        """Whether all frames that are tracked before a frame are in `done`."""
        order = self.order
        return frame in order and done.issuperset(order[: order.index(frame)])

    @property
    def files(self) -> list[str]:
        """The names of the results in the directory."""
        masks = f"{MASKS}.json" if self.format is o.Format.coco_rle else MASKS
        overlay = [] if self.overlay is None else [f"overlay.{self.overlay.value}"]
        return [masks, *overlay, RUN]

    def settings(
        self, weights: WeightsChoice, model: dict[str, Any], masks: dict[Prompt, Mask]
    ) -> dict[str, Any]:
        """All that the result depends on, ready for JSON.

        A run is only continued with the same settings.
        """
        prompts = [
            {**asdict(prompt), "mask": _digest(masks[prompt]) if prompt in masks else None}
            for prompt in self.prompts
        ]
        return {
            "version": sam2_fast.__version__,
            "input": _digest(identity(self.video)),
            "frames": self.num_frames,
            "prompts": prompts,
            "reverse": self.reverse,
            "both": self.both,
            "max_frames": self.max_frames,
            "format": self.format.value,
            "overlay": None if self.overlay is None else self.overlay.value,
            "weights": weights.label,
            "weights_file": None if weights.path is None else identity(weights.path),
            "size": weights.config,
            **{name: str(value) for name, value in model.items()},
        }


def _digest(value: Any) -> str:
    """What tells whether a mask or a list has changed."""
    if isinstance(value, np.ndarray):
        value = value.shape, value.tobytes()
    return hashlib.sha256(repr(value).encode()).hexdigest()
