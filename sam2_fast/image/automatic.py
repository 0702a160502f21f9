"""`SAM2AutomaticMaskGenerator`: masks of everything, from a grid of clicks (official
`automatic_mask_generator.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sam2_fast.image.crops import (
    build_all_layer_point_grids,
    generate_crop_boxes,
    is_box_near_crop_edge,
    uncrop_boxes_xyxy,
    uncrop_points,
)
from sam2_fast.image.mask_table import (
    MaskData,
    area_from_rle,
    batch_iterator,
    box_xyxy_to_xywh,
    plain_rle,
    rle_to_mask,
)
from sam2_fast.image.predictor import ELEMENTS_PER_CALL, SAM2ImagePredictor
from sam2_fast.io.images import as_rgb
from sam2_fast.io.rle import compress_rle, mask_to_rle
from sam2_fast.masks import boxes as mask_boxes
from sam2_fast.masks import without_small_regions
from sam2_fast.model import Sam2
from sam2_fast.official.base import SAM2Base
from sam2_fast.ops.core.transfer import upload
from sam2_fast.ops.mask_postprocess import mask_postprocess
from sam2_fast.ops.nms import batched_nms, nms
from sam2_fast.types import Points
from sam2_fast.weights.build import build_pretrained, warn_of_unknown

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
Record = dict[str, Any]
Crop = tuple[int, list[int], int]
"""(index of the image, box (x0, y0, x1, y1), layer)."""

LOGITS_AT_ONCE = 2**28
"""Logits that are held on a GPU (1 GiB) until all clicks of a crop are decoded: 4096 masks of 256 x
256.
"""


class SAM2AutomaticMaskGenerator:
    """A grid of clicks, filters on quality and stability, and suppression of duplicates; optionally
    on overlapping crops too.
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
        """The official options. point_grids: explicit points [N, 2] in the unit square, one array
        per crop layer, in place of
        points_per_side. use_m2m: decode every mask a second time with itself as hint.

        min_mask_region_area: holes and specks of fewer pixels are removed. min_mask_region_area_at:
        "image" counts pixels of the image and then drops masks that became duplicates; "low_res" is
        upstream's behaviour, which counts low-resolution pixels. Keyword arguments of the builders
        are accepted, unknown ones ignored with a warning. Raises ValueError for options that make
        no sense.
        """
        warn_of_unknown(kwargs)
        if (points_per_side is None) == (point_grids is None):
            raise ValueError(
                "points_per_side and point_grids: expected exactly one of them; pass "
                "points_per_side=None with point_grids"
            )
        _require("points_per_batch", points_per_batch, points_per_batch >= 1, "1 or more")
        _require(
            "points_per_side",
            points_per_side,
            points_per_side is None or points_per_side >= 1,
            "1 or more",
        )
        _require("crop_n_layers", crop_n_layers, crop_n_layers >= 0, "0 or more")
        _require("crop_overlap_ratio", crop_overlap_ratio, 0 <= crop_overlap_ratio < 1, "0 up to 1")
        _require(
            "crop_n_points_downscale_factor",
            crop_n_points_downscale_factor,
            crop_n_points_downscale_factor >= 1,
            "1 or more",
        )
        _require(
            "min_mask_region_area", min_mask_region_area, min_mask_region_area >= 0, "0 or more"
        )
        modes, places = ("binary_mask", "uncompressed_rle", "coco_rle"), ("image", "low_res")
        _require("output_mode", output_mode, output_mode in modes, f"one of {modes}")
        _require(
            "min_mask_region_area_at",
            min_mask_region_area_at,
            min_mask_region_area_at in places,
            f"one of {places}",
        )
        self.point_grids = _grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
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
        """Weights from the Hugging Face Hub or a local path; keyword arguments go to `build_sam2`
        and to the generator.
        """
        model = build_pretrained(SAM2Base, model_id, kwargs)
        return cls(model, **kwargs)

    def generate(self, image: Any) -> list[Record]:
        """All masks of an image (anything that `set_image` takes), each a dictionary:

        segmentation: [H, W] bool, or run lengths {"size", "counts"}; area: pixels; bbox: [x, y,
            width, height]; predicted_iou;
        point_coords: [[x, y]] of the click; stability_score; crop_box: [x, y, width, height]. No
            mask gives [].
        """
        return self.generate_batch([image])[0]

    @torch.no_grad()
    def generate_batch(
        self, images: Sequence[Any], images_per_batch: int = 1
    ) -> list[list[Record]]:
        """`generate` for many images; `images_per_batch` images or crops go through the image
        encoder together.
        """
        _require("images_per_batch", images_per_batch, images_per_batch >= 1, "1 or more")
        records = []
        for start in range(0, len(images), images_per_batch):
            pictures = [as_rgb(image) for image in images[start : start + images_per_batch]]
            records += [
                self._records(data) for data in self._generate_masks(pictures, images_per_batch)
            ]
        return records

    def _records(self, data: MaskData) -> list[Record]:
        encode = {"coco_rle": compress_rle, "binary_mask": rle_to_mask}.get(
            self.output_mode, plain_rle
        )
        return [
            {
                "segmentation": encode(rle),
                "area": area_from_rle(rle),
                "bbox": box_xyxy_to_xywh(data["boxes"][i]).tolist(),
                "predicted_iou": data["iou_preds"][i].item(),
                "point_coords": [data["points"][i].tolist()],
                "stability_score": data["stability_score"][i].item(),
                "crop_box": box_xyxy_to_xywh(data["crop_boxes"][i]).tolist(),
            }
            for i, rle in enumerate(data["rles"])
        ]

    def _generate_masks(
        self, pictures: Sequence[npt.NDArray[Any]], per_batch: int
    ) -> list[MaskData]:
        """Process every crop of every image [H, W, 3], then drop duplicates between the crops of an
        image.
        """
        crops: list[Crop] = []
        for i, picture in enumerate(pictures):
            found = generate_crop_boxes(
                picture.shape[:2], self.crop_n_layers, self.crop_overlap_ratio
            )
            crops += [(i, box, layer) for box, layer in zip(*found, strict=True)]
        tables = [MaskData() for _ in pictures]
        for start in range(0, len(crops), per_batch):
            group = crops[start : start + per_batch]
            self.predictor.set_image_batch(
                [pictures[i][y0:y1, x0:x1] for i, (x0, y0, x1, y1), _ in group]
            )
            for index, (i, box, layer) in enumerate(group):
                tables[i].cat(self._process_crop(index, box, layer, pictures[i].shape[:2]))
        self.predictor.reset_predictor()
        return [self._without_duplicates(table) for table in tables]

    def _without_duplicates(self, data: MaskData) -> MaskData:
        """Between crops, the masks of the smaller crop win; then small regions at image resolution,
        where they are asked for.
        """
        if self.crop_n_layers > 0:
            sides = data["crop_boxes"][:, 2:] - data["crop_boxes"][:, :2]
            data.filter(_nms(data["boxes"], 1 / sides.prod(1), self.crop_nms_thresh))
        if self.min_mask_region_area > 0 and self.min_mask_region_area_at == "image":
            threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
            data = self.postprocess_small_regions(data, self.min_mask_region_area, threshold)
        data.to_numpy()
        return data

    def _process_crop(
        self, index: int, crop_box: list[int], layer: int, hw: tuple[int, int]
    ) -> MaskData:
        """Masks of crop `index` of the predictor's batch, in pixels of the image of size `hw`
        (height, width).
        """
        x0, y0, x1, y1 = crop_box
        points = self.point_grids[layer] * np.array([[x1 - x0, y1 - y0]])
        data, group = MaskData(), self._clicks_together()
        for (some,) in batch_iterator(group, points):
            data.cat(
                self._process_clicks(index, some, crop_box, hw, alone=len(some) == len(points))
            )
        data.filter(_nms(data["boxes"], data["iou_preds"], self.box_nms_thresh))
        data["boxes"] = uncrop_boxes_xyxy(data["boxes"], crop_box)
        data["points"] = uncrop_points(data["points"], crop_box)
        data["crop_boxes"] = torch.tensor(crop_box).expand(len(data["rles"]), 4)
        return data

    def _clicks_together(self) -> int:
        """Clicks that are judged at once: a batch, or on a GPU, where the host would wait for each,
        as many as `LOGITS_AT_ONCE` holds.
        """
        if not _far(self.predictor.device):
            return self.points_per_batch
        side = self.predictor.model.config.image_size // 4
        return max(
            self.points_per_batch,
            LOGITS_AT_ONCE // ((3 if self.multimask_output else 1) * side * side),
        )

    def _process_clicks(
        self,
        index: int,
        points: npt.NDArray[Any],
        crop_box: list[int],
        hw: tuple[int, int],
        alone: bool = False,
    ) -> MaskData:
        """Decode clicks [N, 2] in pixels of the crop and keep the masks that pass the filters.

        On a CPU predicted IoU is judged before any mask is upsampled. alone: they are all clicks of
        the crop.
        """
        crop_hw = (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0])
        device, clicks = self.predictor.device, torch.as_tensor(points, dtype=torch.float32)
        places = upload(
            self.predictor._transforms.transform_coords(clicks, normalize=True, orig_hw=crop_hw),
            device,
        )
        clicks = upload(clicks, device)
        low, iou = self._decoded(places, index)
        data = MaskData(
            iou_preds=iou, points=clicks.repeat_interleave(len(low) // len(clicks), 0), low=low
        )
        if self.pred_iou_thresh > 0.0 and not _far(device):
            data.filter(data["iou_preds"] > self.pred_iou_thresh)
        return self._judge(data, crop_box, crop_hw, hw, alone)

    def _decoded(self, places: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """`_masks_of` any number of clicks, `points_per_batch` at a time into memory for all."""
        found: tuple[Tensor, ...] = ()
        for start in range(0, len(places), self.points_per_batch):
            some = places[start : start + self.points_per_batch]
            parts = self._masks_of(some, index)
            if len(some) == len(places):
                return parts
            count = len(parts[0]) // len(some)
            found = found or tuple(
                part.new_empty(count * len(places), *part.shape[1:]) for part in parts
            )
            for whole, part in zip(found, parts, strict=True):
                whole[count * start : count * (start + len(some))] = part
        return found[0], found[1]

    def _masks_of(self, places: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Masks of clicks [N, 2] in model pixels, one after the other: logits [N * C, h, w], IoU [N
        * C] float32.
        """
        low, iou = self._decode(places, None, self.multimask_output, index)
        count = low.shape[1]
        low, iou = low.flatten(0, 1), iou.flatten()
        if self.use_m2m:
            low, iou = self._refine(
                places.repeat_interleave(count, 0), low.clamp(-32.0, 32.0), index
            )
        return low, iou.float()

    def _judge(
        self,
        data: MaskData,
        crop_box: list[int],
        crop_hw: tuple[int, int],
        hw: tuple[int, int],
        alone: bool,
    ) -> MaskData:
        """Masks as logits (column "low", [N, h, w]) to boxes and run lengths, those that are poor,
        unstable or cut by the crop left out.

        All of it is judged where the logits are, on a GPU duplicates too where the masks are
        `alone`; then the runs of what passed cross to the host.
        """
        low = self.predictor._transforms.clean(data["low"][:, None])[:, 0]
        del data["low"]
        origin, iou, far = (crop_box[1], crop_box[0]), data["iou_preds"], _far(low.device)
        good = (
            iou > self.pred_iou_thresh
            if self.pred_iou_thresh > 0.0
            else torch.ones_like(iou, dtype=torch.bool)
        )

        def keep(inner: Tensor, outer: Tensor, boxes: Tensor) -> Tensor:
            kept = good & ~is_box_near_crop_edge(boxes, crop_box, [0, 0, hw[1], hw[0]])
            if self.stability_score_thresh > 0.0:
                kept &= inner / outer >= self.stability_score_thresh
            return nms(boxes, iou, self.box_nms_thresh, alive=kept) if alone and far else kept

        judged = mask_postprocess(
            low,
            crop_hw,
            self.mask_threshold,
            self.stability_score_offset,
            canvas=hw,
            origin=origin,
            keep=keep,
            which=good if far else None,
        )
        assert judged.kept is not None
        data["stability_score"] = judged.inner / judged.outer
        data["boxes"] = judged.boxes
        data.filter(judged.kept)
        data["rles"] = [{"size": [*hw], "counts": runs} for runs in judged.runs]
        return data

    @staticmethod
    def postprocess_small_regions(
        mask_data: MaskData, min_area: float, nms_thresh: float
    ) -> MaskData:
        """Remove holes and specks of fewer than `min_area` pixels (columns "rles" and "boxes",
        whose device it is done on), then masks that became duplicates.

        Edits `mask_data` and returns it. Masks that needed no change win over those that did. Needs
        no OpenCV.
        """
        rles = mask_data["rles"]
        if not rles:
            return mask_data
        found_boxes, scores = [], []
        height, width = rles[0]["size"]
        rows = max(1, ELEMENTS_PER_CALL // (height * width))
        for start in range(0, len(rles), rows):
            pixels = np.stack([rle_to_mask(rle) for rle in rles[start : start + rows]])
            some = upload(torch.from_numpy(pixels), torch.as_tensor(mask_data["boxes"]).device)
            some, filled = without_small_regions(some, min_area, "holes")
            some, cleared = without_small_regions(some, min_area, "islands")
            changed = filled | cleared
            found_boxes.append(mask_boxes(some))
            scores.append((~changed).float())
            numbers = changed.nonzero()[:, 0].tolist()
            for i, rle in zip(numbers, mask_to_rle(some[changed]), strict=True):
                rles[start + i] = rle
                mask_data["boxes"][start + i] = found_boxes[-1][i]
        mask_data.filter(_nms(torch.cat(found_boxes), torch.cat(scores), nms_thresh))
        return mask_data

    def refine_with_m2m(
        self,
        points: Tensor,
        point_labels: Tensor,
        low_res_masks: Tensor,
        points_per_batch: int,
        img_idx: int = -1,
    ) -> tuple[Tensor, Tensor]:
        """Decode [N, 2] points in model pixels with labels [N] once more, each with its mask [N, h,
        w] as hint -> logits
        [N, 1, H, W] at image size and IoU [N, 1].
        """
        masks, ious = [], []
        for place, label, hint in batch_iterator(
            points_per_batch, points, point_labels, low_res_masks
        ):
            one = self.predictor._predict(
                place[:, None],
                label[:, None],
                mask_input=hint[:, None],
                multimask_output=False,
                return_logits=True,
                img_idx=img_idx,
            )
            masks.append(one[0])
            ious.append(one[1])
        return torch.cat(masks), torch.cat(ious)

    def _refine(self, places: Tensor, hints: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """`refine_with_m2m` that stays at low resolution: places [N, 2], hints [N, h, w] -> [N, h,
        w] and [N].
        """
        found = [
            self._decode(place, hint[:, None], False, index)
            for place, hint in batch_iterator(self.points_per_batch, places, hints)
        ]
        return torch.cat([low for low, _ in found])[:, 0], torch.cat([iou for _, iou in found])[
            :, 0
        ]

    def _decode(
        self, places: Tensor, hints: Tensor | None, multimask: bool, index: int
    ) -> tuple[Tensor, Tensor]:
        """One positive click each: places [N, 2] in model pixels -> logits [N, C, h, w], IoU [N,
        C].
        """
        labels = torch.ones(len(places), 1, dtype=torch.int32, device=places.device)
        return self.predictor.decode_prompts(
            Points(places[:, None], labels), hints, multimask, [index] * len(places)
        )


def _grids(
    side: int | None, grids: Sequence[npt.NDArray[Any]] | None, layers: int, factor: int
) -> list[npt.NDArray[Any]]:
    if side is not None:
        return list(build_all_layer_point_grids(side, layers, factor))
    found = [np.asarray(grid, dtype=np.float64) for grid in grids or ()]
    if len(found) <= layers or any(
        grid.ndim != 2 or grid.shape[1] != 2 or len(grid) == 0 for grid in found
    ):
        shapes = [grid.shape for grid in found]
        raise ValueError(
            f"point_grids: expected {layers + 1} arrays [N, 2] of points in the unit square, one "
            f"per crop layer, got {shapes}"
        )
    return found


def _far(device: torch.device) -> bool:
    """Whether the host waits for the device's numbers."""
    return device.type != "cpu"


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows on the host, where the masks that are left are few."""
    table = torch.cat(
        [boxes.double(), scores.to(boxes.device, torch.float64)[:, None]], dim=1
    ).cpu()
    return batched_nms(
        table[:, :4].float(), table[:, 4].to(scores.dtype), torch.zeros(len(table)), threshold
    )


def _require(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
