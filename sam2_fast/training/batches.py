"""Batches of clips for a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Clip(NamedTuple):
    """T frames of one video and N objects to segment in them."""

    images: Tensor  # [T, 3, S, S] float32, normalised
    truth: Tensor  # [T, N, S, S] bool
    seed: int  # of the simulated annotator's clicks


class Batch(NamedTuple):
    """B clips with the same number of frames, and N objects in total."""

    images: Tensor  # [T, B, 3, S, S] float32, normalised
    truth: Tensor  # [T, N, S, S] bool
    owner: Tensor  # [N] int64: the clip of each object, ascending
    seeds: tuple[int, ...]  # of the B clips

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; copies from pinned memory are asynchronous."""
        images, truth, owner = (t.to(device, non_blocking=True) for t in self[:3])
        return Batch(images, truth, owner, self.seeds)


def collate(clips: Sequence[Clip]) -> Batch:
    """The clips as one batch.

    Raises ValueError if the clips differ in length or size, or if one of them has no object.
    """
    if not clips or len({clip.images.shape for clip in clips}) > 1:
        raise ValueError(
            f"clips: expected one or more, all of the same shape, got "
            f"{[tuple(clip.images.shape) for clip in clips]}"
        )
    for number, (images, truth, _) in enumerate(clips):
        length, _, height, width = images.shape
        if (
            truth.ndim != 4
            or truth.shape[1] < 1
            or (truth.shape[0], *truth.shape[2:]) != (length, height, width)
        ):
            raise ValueError(
                f"clip {number}: expected truth of shape {(length, 'N', height, width)}, got "
                f"{tuple(truth.shape)}"
            )
    owner = torch.tensor(
        [number for number, clip in enumerate(clips) for _ in range(clip.truth.shape[1])]
    )
    all_images = torch.stack([clip.images for clip in clips], dim=1)
    all_truth = torch.cat([clip.truth for clip in clips], dim=1)
    return Batch(all_images, all_truth, owner, tuple(clip.seed for clip in clips))
