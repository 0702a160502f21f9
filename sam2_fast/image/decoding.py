"""Decoding prompts of encoded images, in batches of bounded size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sam2_fast.image.encoded import EncodedImages, FieldOfImages
from sam2_fast.image.transforms import SAM2Transforms
from sam2_fast.model import Sam2
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.prompts import ImagePrompts, join_points, rows_of, stack_points
from sam2_fast.recording.cache import Graphs
from sam2_fast.types import Features, Points

ROWS_PER_CALL = 64
"""Prompts decoded in one call."""

CPU_TOKENS_PER_CALL = 2**14
"""Image tokens decoded in one call on a CPU: 4 prompts at 1024 pixels.

They fit into its caches; a larger batch needs more time for each prompt.
"""

ELEMENTS_PER_CALL = 2**27
"""Mask pixels upsampled in one call: 512 MB of float32.

This is far below the 2^31 elements that CUDA kernels can index.
"""


class PromptDecoder:
    """Decodes prompts of one or several images; the subclass encodes them."""

    model: Sam2
    graphs: Graphs | None
    mask_threshold: float
    _transforms: SAM2Transforms
    _images: EncodedImages
    # The official names of what `_images` has. Programs read and write them.
    _features: FieldOfImages[dict[str, Any] | None] = FieldOfImages("features")
    _orig_hw: FieldOfImages[list[tuple[int, int]] | None] = FieldOfImages("sizes")
    _is_image_set: FieldOfImages[bool] = FieldOfImages("is_set")
    _is_batch: FieldOfImages[bool] = FieldOfImages("is_batch")

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return self.model.device

    @torch.no_grad()
    def _predict_images(
        self, prompts: Sequence[ImagePrompts], multimask: bool, return_logits: bool
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`_predict` for every image, with prompts of all images in common decoder calls.

        Only prompts with and without points, and with and without a mask hint, are separated.
        """
        assert self._orig_hw is not None
        points = [join_points(p.coords, p.labels, p.boxes) for p in prompts]
        counts = [num_prompts(own, p.mask) for own, p in zip(points, prompts, strict=True)]
        groups: dict[tuple[bool, bool], list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            groups[points[i] is not None, prompt.mask is not None].append(i)
        outputs: dict[int, tuple[Tensor, Tensor]] = {}
        for members in groups.values():
            member_points = [p for i in members if (p := points[i]) is not None]
            hints = [
                mask.expand(counts[i], -1, -1, -1)
                for i in members
                if (mask := prompts[i].mask) is not None
            ]
            low, iou = self.decode_prompts(
                stack_points(member_points) if member_points else None,
                torch.cat(hints) if hints else None,
                multimask,
                [i for i in members for _ in range(counts[i])],
            )
            sizes = [counts[i] for i in members]
            parts = zip(low.split(sizes), iou.split(sizes), strict=True)
            outputs.update(zip(members, parts, strict=True))
        results = []
        for i, hw in enumerate(self._orig_hw):
            low, iou = outputs[i]
            masks = self._at_image_size(low, hw, return_logits)
            results.append((masks, iou, low.clamp(-32.0, 32.0)))
        return results

    def decode_prompts(
        self, points: Points | None, hint: Tensor | None, multimask: bool, images: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, C, S / 4, S / 4] float32 and IoU [B, C] of B prompts.

        images: the index of the image of each prompt.
        """
        graphs = self._usable_graphs()
        decode = self.model.decode if graphs is None else partial(graphs.decode, self.model)
        step = ROWS_PER_CALL
        if self.device.type == "cpu" and hint is not None:
            # With a hint, every prompt has its own image tokens.
            step = min(step, max(1, CPU_TOKENS_PER_CALL // self.model.config.grid**2))
        if self.model.reason_to_call() is not None:
            step = max(1, len(images))  # parts that are called get all prompts, as in upstream's
        low, iou = [], []
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            features = self._features_of(images[rows])
            batch_points = None if points is None else rows_of(points, rows, self.device)
            batch_hint = hint if hint is None or len(hint) == 1 else hint[rows]
            prediction = decode(features.low, features, batch_points, batch_hint, multimask)
            low.append(prediction.logits)
            iou.append(prediction.iou)
        if not low:
            masks = 3 if multimask else 1
            side = self.model.config.image_size // 4
            no_logits = torch.zeros(0, masks, side, side, device=self.device)
            return no_logits, torch.zeros(0, masks, device=self.device)
        return torch.cat(low), torch.cat(iou)

    def _features_of(self, images: list[int]) -> Features:
        """Features of these images, [B, ...]; [1, ...] if all are the same image."""
        assert self._features is not None
        high, mid = self._features["high_res_feats"]
        features = Features(self._features["image_embed"], mid, high)
        if len(set(images)) == 1:
            return features.image(images[0] % len(features.low))
        rows = upload_numbers(images, torch.int64, self.device)
        return Features(*(level[rows] for level in features))

    def _usable_graphs(self) -> Graphs | None:
        """The cache of CUDA graphs, or None if none can be used."""
        graphs = self.graphs
        if graphs is None or graphs.refuses(self.model, self.model.no_mem_embed) is not None:
            return None
        return graphs

    def _at_image_size(self, low: Tensor, hw: tuple[int, int], return_logits: bool) -> Tensor:
        """[B, C, S / 4, S / 4] logits -> [B, C, H, W] masks, in calls of bounded size."""
        rows = max(1, ELEMENTS_PER_CALL // max(1, low.shape[1] * hw[0] * hw[1]))
        parts = []
        for batch in low.split(rows) if len(low) else (low,):
            masks = self._transforms.postprocess_masks(batch, hw)
            parts.append(masks if return_logits else masks > self.mask_threshold)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def num_prompts(points: Points | None, mask: Tensor | None) -> int:
    """The number of prompts with these points or mask hints."""
    if points is not None:
        return len(points.coords)
    return 0 if mask is None else len(mask)
