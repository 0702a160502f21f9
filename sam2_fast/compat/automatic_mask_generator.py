"""`sam2.automatic_mask_generator`."""

from torch import Tensor

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
from sam2_fast.ops.nms import batched_nms as batched_nms


def box_area(boxes: Tensor) -> Tensor:
    """Areas [N] of boxes [N, 4] (x0, y0, x1, y1)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[:, 0] * sides[:, 1]
