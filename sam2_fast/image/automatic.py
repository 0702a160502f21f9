"""`SAM2AutomaticMaskGenerator`: masks of everything in an image, from a grid of clicks.

Source: official `automatic_mask_generator.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.image.cleanup import BATCHED_NMS, remove_small_regions, unique_rows
from sam2_fast.image.clicks import ClickDecoder
from sam2_fast.image.crops import (
    generate_crop_boxes,
    is_box_near_crop_edge,
    uncrop_boxes_xyxy,
    uncrop_points,
)
from sam2_fast.image.generator_options import (
    point_grids_of,
    require,
    require_finite,
    require_one_of,
    require_whole,
)
from sam2_fast.image.mask_table import MaskData, Record, batch_iterator, records_of
from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.io.images import as_rgb
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.ops.core.exclusive import Exclusive, exclusively
from sam2_fast.ops.core.transfer import upload
from sam2_fast.ops.mask_postprocess import mask_postprocess
from sam2_fast.ops.nms import nms
from sam2_fast.weights.build import build_pretrained, warn_of_unknown

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Crop = tuple[int, list[int], int]
"""(index of the image, box (x0, y0, x1, y1), layer)."""

LOGITS_AT_ONCE = 2**28
"""Logits that are stored on a GPU until they are filtered: 1 GiB, 4096 masks of 256 x 256."""


class SAM2AutomaticMaskGenerator:
    """Masks of everything in an image.

    A grid of clicks is decoded, optionally on overlapping crops too. The masks are filtered by
    predicted IoU and stability, and duplicates are removed.
    A generator is for one thread at a time: calls raise RuntimeError while another one runs.
    """

    def __init__(
        self,
        model: Sam2,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[npt.NDArray[Any]] | None = None,
        min_mask_region_area: float = 0,
        output_mode: OutputMode = "binary_mask",
        use_m2m: bool = False,
        multimask_output: bool = True,
        *,
        min_mask_region_area_at: Literal["image", "low_res"] = "image",
        **kwargs: Any,
    ) -> None:
        """The official options.

        point_grids: points [N, 2] in the unit square, one array for each crop layer, instead of
            points_per_side.
        use_m2m: decode every mask a second time, with itself as the mask hint.
        min_mask_region_area: holes and specks of fewer pixels are removed.
        min_mask_region_area_at: "image": pixels of the image, and masks that became duplicates are
            removed; "low_res": low-resolution pixels, as upstream.
        kwargs: those of the builders are accepted; unknown ones are ignored with a warning.
        Raises ValueError for invalid options.
        """
        warn_of_unknown(kwargs)
        if (points_per_side is None) == (point_grids is None):
            raise ValueError(
                "points_per_side and point_grids: expected exactly one of them; pass "
                "points_per_side=None with point_grids"
            )
        require_whole(1, points_per_batch=points_per_batch)
        if points_per_side is not None:
            require_whole(1, points_per_side=points_per_side)
        require_whole(0, crop_n_layers=crop_n_layers)
        require_finite(0, crop_overlap_ratio=crop_overlap_ratio)
        require("crop_overlap_ratio", crop_overlap_ratio, crop_overlap_ratio < 1, "0 up to 1")
        require_whole(1, crop_n_points_downscale_factor=crop_n_points_downscale_factor)
        require_finite(0, min_mask_region_area=min_mask_region_area)
        require_finite(0, box_nms_thresh=box_nms_thresh, crop_nms_thresh=crop_nms_thresh)
        require_finite(
            -math.inf,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            mask_threshold=mask_threshold,
        )
        require_one_of(("binary_mask", "uncompressed_rle", "coco_rle"), output_mode=output_mode)
        require_one_of(("image", "low_res"), min_mask_region_area_at=min_mask_region_area_at)
        self.point_grids = point_grids_of(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.guard = Exclusive("generator")
        low_res_area = min_mask_region_area if min_mask_region_area_at == "low_res" else 0
        self.predictor = SAM2ImagePredictor(
            model, max_hole_area=low_res_area, max_sprinkle_area=low_res_area
        )
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.mask_threshold = mask_threshold
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.min_mask_region_area_at = min_mask_region_area_at
        self.output_mode = output_mode
        self.use_m2m = use_m2m
        self.multimask_output = multimask_output

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2AutomaticMaskGenerator:
        """A generator with weights from the Hugging Face Hub or a local path.

        Keyword arguments are those of `build_sam2` and of the generator.
        """
        model = build_pretrained(SAM2Base, model_id, kwargs)
        return cls(model, **kwargs)

    @exclusively
    def generate(self, image: Any) -> list[Record]:
        """All masks of an image, each as a dictionary; [] if there are none.

        image: of any kind that `set_image` accepts. Keys of a dictionary:
        segmentation: [H, W] bool, or run lengths {"size", "counts"}.
        area: pixels. bbox, crop_box: [x, y, width, height].
        point_coords: [[x, y]] of the click. predicted_iou, stability_score: float.
        """
        return self.generate_batch([image])[0]

    @exclusively
    @torch.no_grad()
    def generate_batch(
        self, images: Sequence[Any], images_per_batch: int = 1
    ) -> list[list[Record]]:
        """`generate` for many images.

        images_per_batch: images or crops that are encoded together.
        """
        require_whole(1, images_per_batch=images_per_batch)
        records = []
        predictor = self.predictor
        with predictor.guard.call("generate"), predictor.without_images():
            for start in range(0, len(images), images_per_batch):
                pictures = [as_rgb(image) for image in images[start : start + images_per_batch]]
                tables = self._generate_masks(pictures, images_per_batch)
                records += [records_of(table, self.output_mode) for table in tables]
        return records

    def _generate_masks(
        self, pictures: Sequence[npt.NDArray[Any]], per_batch: int
    ) -> list[MaskData]:
        """The masks of images [H, W, 3], one table for each image."""
        crops: list[Crop] = []
        for i, picture in enumerate(pictures):
            boxes, layers = generate_crop_boxes(
                picture.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
            )
            crops += [(i, box, layer) for box, layer in zip(boxes, layers, strict=True)]
        tables = [MaskData() for _ in pictures]
        for start in range(0, len(crops), per_batch):
            batch = crops[start : start + per_batch]
            self.predictor.set_image_batch(
                [pictures[i][y0:y1, x0:x1] for i, (x0, y0, x1, y1), _ in batch]
            )
            for index, (i, box, layer) in enumerate(batch):
                tables[i].cat(self._process_crop(index, box, layer, pictures[i].shape[:2]))
        return [self._clean_up(table) for table in tables]

    def _clean_up(self, data: MaskData) -> MaskData:
        """Remove duplicates between crops, where masks of smaller crops win; then small regions."""
        if self.crop_n_layers > 0:
            sides = data["crop_boxes"][:, 2:] - data["crop_boxes"][:, :2]
            data.filter(unique_rows(data["boxes"], 1 / sides.prod(1), self.crop_nms_thresh))
        if self.min_mask_region_area > 0 and self.min_mask_region_area_at == "image":
            threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            data = self.postprocess_small_regions(data, self.min_mask_region_area, threshold)
        data.to_numpy()
        return data

    def _process_crop(
        self, index: int, crop_box: list[int], layer: int, hw: tuple[int, int]
    ) -> MaskData:
        """Masks of crop `index` of the predictor's batch, in pixels of the image.

        hw: (height, width) of the image.
        """
        x0, y0, x1, y1 = crop_box
        points = self.point_grids[layer] * np.array([[x1 - x0, y1 - y0]])
        data = MaskData()
        for (clicks,) in batch_iterator(self._clicks_per_filter(), points):
            all_clicks = len(clicks) == len(points)
            data.cat(self._process_clicks(index, clicks, crop_box, hw, all_clicks))
        data.filter(unique_rows(data["boxes"], data["iou_preds"], self.box_nms_thresh))
        data["boxes"] = uncrop_boxes_xyxy(data["boxes"], crop_box)
        data["points"] = uncrop_points(data["points"], crop_box)
        data["crop_boxes"] = torch.tensor(crop_box).expand(len(data["rles"]), 4)
        return data

    def _clicks_per_filter(self) -> int:
        """Clicks that are decoded before their masks are filtered.

        This is one batch on a CPU. On a GPU the host waits for the device each time, so it is as
        many as `LOGITS_AT_ONCE` allows.
        """
        if not _on_accelerator(self.predictor.device):
            return self.points_per_batch
        side = self.predictor.model.config.image_size // 4
        logits_per_click = (3 if self.multimask_output else 1) * side * side
        return max(self.points_per_batch, LOGITS_AT_ONCE // logits_per_click)

    def _process_clicks(
        self,
        index: int,
        points: npt.NDArray[Any],
        crop_box: list[int],
        hw: tuple[int, int],
        all_clicks: bool = False,
    ) -> MaskData:
        """Decode clicks [N, 2] in pixels of the crop, and keep the masks that pass the filters.

        all_clicks: whether these are all clicks of the crop.
        """
        crop_hw = (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0])
        device = self.predictor.device
        clicks = torch.as_tensor(points, dtype=torch.float32)
        transform_coords = self.predictor._transforms.transform_coords
        coords = upload(transform_coords(clicks, normalize=True, orig_hw=crop_hw), device)
        clicks = upload(clicks, device)
        decoder = ClickDecoder(
            self.predictor,
            index,
            self.points_per_batch,
            self.multimask_output,
            self.use_m2m,
            own_steps=self.predictor.is_overridden(),
        )
        low, iou = decoder.masks(coords)
        data = MaskData(
            iou_preds=iou, points=clicks.repeat_interleave(len(low) // len(clicks), 0), low=low
        )
        if self.pred_iou_thresh > 0.0 and not _on_accelerator(device):
            # On a CPU, masks of low predicted IoU are not even upsampled.
            data.filter(data["iou_preds"] > self.pred_iou_thresh)
        return self._filter_masks(data, crop_box, crop_hw, hw, all_clicks)

    def _filter_masks(
        self,
        data: MaskData,
        crop_box: list[int],
        crop_hw: tuple[int, int],
        hw: tuple[int, int],
        all_clicks: bool,
    ) -> MaskData:
        """Boxes and run lengths of masks; poor, unstable and cut masks are removed.

        data: its column "low", logits [N, ., .], is replaced.
        The filters run on the device of the logits. On a GPU they include the removal of duplicates
        if `all_clicks`. Then only the run lengths of the remaining masks are copied to the host.
        """
        low = data["low"]
        if not self.predictor.is_overridden():  # else `_predict` has removed holes and specks
            low = self.predictor._transforms.clean(low[:, None])[:, 0]
        del data["low"]
        origin = (crop_box[1], crop_box[0])
        iou = data["iou_preds"]
        on_accelerator = _on_accelerator(low.device)
        if self.pred_iou_thresh > 0.0:
            good = iou > self.pred_iou_thresh
        else:
            good = torch.ones_like(iou, dtype=torch.bool)

        def keep(inner: Tensor, outer: Tensor, boxes: Tensor) -> Tensor:
            kept = good & ~is_box_near_crop_edge(boxes, crop_box, [0, 0, hw[1], hw[0]])
            if self.stability_score_thresh > 0.0:
                kept &= inner / outer >= self.stability_score_thresh
            if all_clicks and on_accelerator and not BATCHED_NMS.replaced():
                return nms(boxes, iou, self.box_nms_thresh, alive=kept)
            return kept

        output = mask_postprocess(
            low,
            crop_hw,
            self.mask_threshold,
            self.stability_score_offset,
            canvas=hw,
            origin=origin,
            keep=keep,
            which=good if on_accelerator else None,
        )
        assert output.kept is not None
        data["stability_score"] = output.inner / output.outer
        data["boxes"] = output.boxes
        data.filter(output.kept)
        data["rles"] = [{"size": [*hw], "counts": runs} for runs in output.runs]
        return data

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: float, nms_thresh: float
    ) -> MaskData:
        """Remove holes and specks of fewer than `min_area` pixels, then resulting duplicates.

        Edits `mask_data` and returns it. Masks without changes are preferred to changed ones. This
        method does not use OpenCV.
        """
        return remove_small_regions(mask_data, min_area, nms_thresh)

    @exclusively
    def refine_with_m2m(
        self,
        points: Tensor,
        point_labels: Tensor,
        low_res_masks: Tensor,
        points_per_batch: int,
        img_idx: int = -1,
    ) -> tuple[Tensor, Tensor]:
        """Decode clicks again, each with its mask as the hint: logits [N, 1, H, W] and IoU [N, 1].

        points: [N, 2] in model pixels. point_labels: [N]. low_res_masks: [N, h, w] logits.
        The result is at image size.
        """
        masks, ious = [], []
        for coords, labels, hints in batch_iterator(
            points_per_batch, points, point_labels, low_res_masks
        ):
            mask, iou, _ = self.predictor._predict(
                coords[:, None],
                labels[:, None],
                mask_input=hints[:, None],
                multimask_output=False,
                return_logits=True,
                img_idx=img_idx,
            )
            masks.append(mask)
            ious.append(iou)
        return torch.cat(masks), torch.cat(ious)


def _on_accelerator(device: torch.device) -> bool:
    """Whether the host must wait for `device` to read values."""
    return device.type != "cpu"
