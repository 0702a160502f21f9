"""`SAM2ImagePredictor`: encode an image once, then ask for masks as often as needed (official
`sam2_image_predictor.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.image.transforms import SAM2Transforms
from sam2_fast.io.images import as_rgb
from sam2_fast.io.transforms import resize_image
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.ops.core.transfer import upload_numbers
from sam2_fast.prompts import ImagePrompts, image_prompts, join_points, rows_of, stack_points
from sam2_fast.recording.cache import Graphs
from sam2_fast.types import Features, Points
from sam2_fast.weights.build import build_pretrained, warn_of_unknown

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""(masks, predicted IoU, low-resolution logits), as `predict` returns them."""

ROWS_PER_CALL = 64
"""Prompts decoded in one call."""

CPU_TOKENS_PER_CALL = 2**14
"""Image tokens decoded in one call on a CPU (4 prompts at 1024 pixels): what its caches hold; a
larger batch is slower a prompt.
"""

ELEMENTS_PER_CALL = 2**27
"""Mask pixels upsampled in one call: 512 MB of float32, and far below the 2^31 elements that CUDA's
kernels can index.
"""

NOT_SET = "An image must be set with .set_image(...) before mask prediction."


class SAM2ImagePredictor:
    """Masks of one image, or of a batch of images, from clicks, boxes and earlier masks.

    Sizes: S the model's input, low-resolution masks are S / 4 pixels square (256 for the released
        models).
    graphs: recordings (CUDA graphs) of the encoder and of prompts whose shape comes again, used on
        GPUs; None: do without.
    """

    def __init__(
        self,
        sam_model: Sam2,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """mask_threshold: logit above which a pixel is object. max_hole_area, max_sprinkle_area:
        holes and specks of at most so many low-resolution pixels are removed. Keyword arguments of
        the builders are accepted, unknown ones ignored with a warning.
        """
        warn_of_unknown(kwargs)
        if not isinstance(sam_model, Sam2):
            raise TypeError(
                f"sam_model: expected a model from build_sam2, got {type(sam_model).__name__}"
            )
        size = sam_model.config.image_size
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._transforms = SAM2Transforms(size, mask_threshold, max_hole_area, max_sprinkle_area)
        self.graphs: Graphs | None = Graphs()
        self._bb_feat_sizes = [(size // stride, size // stride) for stride in (4, 8, 16)]
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """Weights from the Hugging Face Hub or a local path; keyword arguments go to `build_sam2`
        and to the predictor.
        """
        model = build_pretrained(SAM2Base, model_id, kwargs)
        return cls(model, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    def reset_predictor(self) -> None:
        """Forget the image."""
        self._is_image_set = False
        self._is_batch = False
        self._features: dict[str, Any] | None = None
        self._orig_hw: list[tuple[int, int]] | None = None

    @torch.no_grad()
    def set_image(self, image: Any) -> None:
        """Encode one image: a path, a Pillow image, [H, W, 3] uint8 or float in [0, 1], grey, RGBA,
        or a tensor [3, H, W].

        Raises ValueError or TypeError for anything else; the previous image then stays set.
        """
        self._encode([image], is_batch=False)

    @torch.no_grad()
    def set_image_batch(self, image_list: Sequence[Any]) -> None:
        """Encode images of any sizes together, for `predict_batch`. Raises as `set_image`, naming
        the image.
        """
        if not isinstance(image_list, (list, tuple)) or not image_list:
            raise ValueError(
                f"image_list: expected a list of at least one image, got "
                f"{type(image_list).__name__}"
            )
        self._encode(image_list, is_batch=True)

    def _encode(self, images: Sequence[Any], is_batch: bool) -> None:
        pictures = []
        for index, image in enumerate(images):
            try:
                pictures.append(as_rgb(image))
            except ValueError as error:
                raise ValueError(
                    f"image_list[{index}]: {error}" if is_batch else str(error)
                ) from error
        batch = torch.stack(
            [
                resize_image(picture, self.model.config.image_size, self.device)
                for picture in pictures
            ]
        )
        graphs = self._recording()
        features = (
            self.model.encode_image(batch) if graphs is None else graphs.encode(self.model, batch)
        )
        self._features = {
            "image_embed": self.model.without_memory(features.low),
            "high_res_feats": [features.high, features.mid],
        }
        self._orig_hw = [(int(p.shape[0]), int(p.shape[1])) for p in pictures]
        self._is_batch = is_batch
        self._is_image_set = True

    def get_image_embedding(self) -> Tensor:
        """[1, 256, S / 16, S / 16] features of the image. Raises RuntimeError without one."""
        if self._features is None:
            raise RuntimeError(
                "An image must be set with .set_image(...) to generate an embedding."
            )
        return self._features["image_embed"]

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> Arrays:
        """Masks for clicks [P, 2] with labels [P] (1 object, 0 background), a box [4] (x0, y0, x1,
        y1), a low-resolution mask
        [1, S / 4, S / 4], or several together; with a leading B for B objects at once.

        Coordinates are image pixels, or fractions of the image where normalize_coords is False.
        multimask_output: three masks, for ambiguous prompts, else one.
        Returns masks [C, H, W] float32 of 0 and 1 (logits with return_logits), predicted IoU [C]
        and low-resolution logits
        [C, S / 4, S / 4] clamped to +-32, all with a leading B where B is not 1. Raises
        RuntimeError without an image, ValueError
        for prompts that make no sense. Source: official `predict`.
        """
        hw = self._image_size(-1)
        prompts = self._check_prompts(
            point_coords, point_labels, box, mask_input, normalize_coords, hw
        )
        found = self._predict(
            prompts.coords,
            prompts.labels,
            prompts.boxes,
            prompts.mask,
            multimask_output,
            return_logits,
        )
        return _arrays(found)

    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[
        list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]
    ]:
        """`predict` for every image of `set_image_batch`: each argument is None or a list with one
        entry per image.

        Prompts of the same length are decoded together, whatever their image; padding them to one
        length would change the masks.
        """
        if not self._is_batch:
            raise RuntimeError(
                "Images must be set with .set_image_batch(...) before predict_batch."
            )
        assert self._orig_hw is not None
        given = {
            "point_coords": point_coords_batch,
            "point_labels": point_labels_batch,
            "box": box_batch,
            "mask_input": mask_input_batch,
        }
        count = len(self._orig_hw)
        for name, values in given.items():
            if values is not None and len(values) != count:
                raise ValueError(
                    f"{name}_batch: expected {count} entries, one per image, got {len(values)}"
                )
        per_image = [
            [None if values is None else values[i] for values in given.values()]
            for i in range(count)
        ]
        prompts = [
            self._check_prompts(a, b, c, d, normalize_coords, hw)
            for (a, b, c, d), hw in zip(per_image, self._orig_hw, strict=True)
        ]
        results = [
            _arrays(found)
            for found in self._predict_images(prompts, multimask_output, return_logits)
        ]
        masks, ious, low = ([result[part] for result in results] for part in range(3))
        return masks, ious, low

    def _prep_prompts(
        self,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_logits: Any,
        normalize_coords: bool,
        img_idx: int = -1,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(mask input, point coordinates, labels, boxes) in model pixels, for `_predict`. Source:
        official `_prep_prompts`.
        """
        hw = self._image_size(img_idx)
        prompts = self._check_prompts(
            point_coords, point_labels, box, mask_logits, normalize_coords, hw
        )
        return prompts.mask, prompts.coords, prompts.labels, prompts.boxes

    @torch.no_grad()
    def _predict(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        img_idx: int = -1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors in model pixels in: [B, P, 2], [B, P], [B, 4] or [B, 2, 2], [B, 1, S / 4, S / 4];
        tensors out: masks
        [B, C, H, W] bool, or float32 logits with return_logits, IoU [B, C], logits [B, C, S / 4, S
        / 4]. Source: official `_predict`.
        """
        hw = self._image_size(img_idx)
        points = join_points(point_coords, point_labels, boxes)
        rows = (
            len(mask_input)
            if points is None and mask_input is not None
            else 0
            if points is None
            else len(points.coords)
        )
        if points is None and mask_input is None:
            raise ValueError(
                "_predict: expected point_coords with point_labels, boxes or mask_input, got none "
                "of them"
            )
        low, iou = self.decode_prompts(points, mask_input, multimask_output, [img_idx] * rows)
        return self._at_image_size(low, hw, return_logits), iou, low.clamp(-32.0, 32.0)

    @torch.no_grad()
    def _predict_images(
        self, prompts: Sequence[ImagePrompts], multimask: bool, return_logits: bool
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`_predict` for every image; all of them go through the decoder together, whatever their
        lengths (those with a mask hint, and those without points, apart)."""
        assert self._orig_hw is not None
        joined = [join_points(p.coords, p.labels, p.boxes) for p in prompts]
        counts = [
            len(p.coords) if p is not None else len(m.mask) if m.mask is not None else 0
            for p, m in zip(joined, prompts, strict=True)
        ]
        groups: dict[tuple[bool, bool], list[int]] = defaultdict(list)
        for i, (points, given) in enumerate(zip(joined, prompts, strict=True)):
            groups[points is not None, given.mask is not None].append(i)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for members in groups.values():
            chosen = [p for i in members if (p := joined[i]) is not None]
            points = stack_points(chosen) if chosen else None
            hints = [
                m.expand(counts[i], -1, -1, -1)
                for i in members
                if (m := prompts[i].mask) is not None
            ]
            low, iou = self.decode_prompts(
                points,
                torch.cat(hints) if hints else None,
                multimask,
                [i for i in members for _ in range(counts[i])],
            )
            sizes = [counts[i] for i in members]
            found.update(
                zip(members, zip(low.split(sizes), iou.split(sizes), strict=True), strict=True)
            )
        return [
            (
                self._at_image_size(found[i][0], hw, return_logits),
                found[i][1],
                found[i][0].clamp(-32.0, 32.0),
            )
            for i, hw in enumerate(self._orig_hw)
        ]

    def decode_prompts(
        self, points: Points | None, hint: Tensor | None, multimask: bool, images: list[int]
    ) -> tuple[Tensor, Tensor]:
        """One prompt per entry of `images` (the index of its image) -> logits [B, C, S / 4, S / 4]
        float32 and IoU [B, C].
        """
        count, masks, side = len(images), 3 if multimask else 1, self.model.config.image_size // 4
        low, iou = [], []
        step, graphs = ROWS_PER_CALL, self._recording()
        if (
            self.device.type == "cpu" and hint is not None
        ):  # each prompt has an image of its own then
            step = min(step, max(1, CPU_TOKENS_PER_CALL // self.model.config.grid**2))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            features = self._features_of(images[rows])
            some = None if points is None else rows_of(points, rows, self.device)
            some_hint = hint if hint is None or len(hint) == 1 else hint[rows]
            decode = self.model.decode if graphs is None else partial(graphs.decode, self.model)
            found = decode(features.low, features, some, some_hint, multimask)
            low.append(found.logits)
            iou.append(found.iou)
        if not low:
            return torch.zeros(0, masks, side, side, device=self.device), torch.zeros(
                0, masks, device=self.device
            )
        return torch.cat(low), torch.cat(iou)

    def _features_of(self, images: list[int]) -> Features:
        """Features of these images, [B, ...]; of one image once ([1, ...])
        where all are the same.
        """
        assert self._features is not None
        high, mid = self._features["high_res_feats"]
        features = Features(self._features["image_embed"], mid, high)
        if len(set(images)) == 1:
            index = images[0] % len(features.low)
            return features.image(index)
        which = upload_numbers(images, torch.int64, self.device)
        return Features(*(level[which] for level in features))

    def _recording(self) -> Graphs | None:
        """Recordings to use, where there can be some."""
        return (
            self.graphs
            if self.graphs is not None
            and self.graphs.refuses(self.model, self.model.no_mem_embed) is None
            else None
        )

    def _at_image_size(self, low: Tensor, hw: tuple[int, int], return_logits: bool) -> Tensor:
        """[B, C, S / 4, S / 4] logits -> [B, C, H, W] masks, a bounded number
        of pixels at a time.
        """
        rows = max(1, ELEMENTS_PER_CALL // max(1, low.shape[1] * hw[0] * hw[1]))
        parts = []
        for some in low.split(rows) if len(low) else (low,):
            masks = self._transforms.postprocess_masks(some, hw)
            parts.append(masks if return_logits else masks > self.mask_threshold)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image that is set; RuntimeError with the official words without
        one.
        """
        if not self._is_image_set or self._orig_hw is None:
            raise RuntimeError(NOT_SET)
        return self._orig_hw[index]

    def _check_prompts(
        self, coords: Any, labels: Any, box: Any, mask: Any, normalize: bool, hw: tuple[int, int]
    ) -> ImagePrompts:
        return image_prompts(
            coords, labels, box, mask, normalize, hw, self.model.config.image_size, self.device
        )


def _arrays(found: tuple[Tensor, Tensor, Tensor]) -> Arrays:
    masks, iou, low = (part.squeeze(0).float().cpu().numpy() for part in found)
    return masks, iou, low
