"""Decoding many clicks on one image, each as a prompt of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from sam2_fast.image.mask_table import batch_iterator
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.types import Points


class ClickDecoder:
    """Decodes positive clicks on image `index` of a predictor, `batch_size` clicks at a time.

    refine: decode every mask a second time, with itself as the mask hint.
    own_steps: call the predictor's `_predict`, which is overridden; masks then have the size of the
        image.
    """

    def __init__(
        self,
        predictor: SAM2ImagePredictor,
        index: int,
        batch_size: int,
        multimask: bool,
        refine: bool,
        own_steps: bool = False,
    ) -> None:
        self._predictor = predictor
        self._index = index
        self._batch_size = batch_size
        self._multimask = multimask
        self._refine_masks = refine
        self._own_steps = own_steps

    def masks(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of clicks, one after the other: logits [N * C, ., .], IoU [N * C] float32.

        coords: [N, 2] in model pixels.
        """
        outputs: tuple[Tensor, ...] = ()
        for start in range(0, len(coords), self._batch_size):
            batch = coords[start : start + self._batch_size]
            parts = self._masks_of_batch(batch)
            if len(batch) == len(coords):
                return parts
            count = len(parts[0]) // len(batch)
            # Write to tensors for all clicks: a concatenation would need twice the memory.
            outputs = outputs or tuple(
                part.new_empty(count * len(coords), *part.shape[1:]) for part in parts
            )
            for output, part in zip(outputs, parts, strict=True):
                output[count * start : count * (start + len(batch))] = part
        return outputs[0], outputs[1]

    def _masks_of_batch(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        masks, iou, low = self._decode(coords, None, self._multimask)
        count = masks.shape[1]
        masks, iou = masks.flatten(0, 1), iou.flatten()
        if self._refine_masks:
            hints = low.flatten(0, 1).clamp(-32.0, 32.0)
            masks, iou = self._refine(coords.repeat_interleave(count, 0), hints)
        return masks, iou.float()

    def _refine(self, coords: Tensor, hints: Tensor) -> tuple[Tensor, Tensor]:
        """coords: [N, 2]; hints: [N, h, w] logits -> logits [N, h, w] and IoU [N]."""
        outputs = [
            self._decode(batch, batch_hints[:, None], False)
            for batch, batch_hints in batch_iterator(self._batch_size, coords, hints)
        ]
        masks, iou, _ = (torch.cat(parts)[:, 0] for parts in zip(*outputs, strict=True))
        return masks, iou

    def _decode(
        self, coords: Tensor, hints: Tensor | None, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """coords: [N, 2] in model pixels -> masks [N, C, ., .], IoU [N, C], logits [N, C, h, w]."""
        labels = torch.ones(len(coords), 1, dtype=torch.int32, device=coords.device)
        if self._own_steps:
            return self._predictor._predict(
                coords[:, None],
                labels,
                mask_input=hints,
                multimask_output=multimask,
                return_logits=True,
                img_idx=self._index,
            )
        low, iou = self._predictor.decode_prompts(
            Points(coords[:, None], labels), hints, multimask, [self._index] * len(coords)
        )
        return low, iou, low
