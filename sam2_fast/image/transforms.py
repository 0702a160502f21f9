"""`SAM2Transforms`: images, coordinates and masks between the sizes of an image and the model.

Source: official `utils/transforms.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sam2_fast.io.images import as_rgb
from sam2_fast.io.transforms import PIXEL_MEAN, PIXEL_STD, as_planes, resize_images
from sam2_fast.masks import remove_holes_and_specks, upsample
from sam2_fast.ops.core.module_state import has_hooks
from sam2_fast.ops.core.transfer import upload_numbers


def to_tensor(image: Any) -> Tensor:
    """One image, as for `as_rgb`, as [3, H, W], uint8 or float32 in [0, 1]."""
    return as_planes(as_rgb(image))


class ResizeAndNormalize(nn.Module):
    """Images resized to model input (bilinear, antialiased) and normalised per channel."""

    def __init__(self, resolution: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.resolution = resolution
        self.mean = tuple(mean)
        self.std = tuple(std)

    def forward(self, x: Tensor) -> Tensor:
        """x: [3, H, W], uint8 or floating point in [0, 1] -> [3, S, S] float32."""
        return resize_images(x[None], self.resolution, None, self.mean, self.std)[0]


class SAM2Transforms(nn.Module):
    """The transforms, without torchvision.

    resolution: the side S of the model's input, pixels.
    """

    def __init__(
        self,
        resolution: int,
        mask_threshold: float,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
    ) -> None:
        """max_hole_area, max_sprinkle_area: pixels of the largest holes and specks to remove."""
        super().__init__()
        self.resolution = resolution
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self.mean = list(PIXEL_MEAN)
        self.std = list(PIXEL_STD)
        self.to_tensor = to_tensor
        self.transforms = ResizeAndNormalize(resolution, self.mean, self.std)

    def __call__(self, x: Any) -> Tensor:
        """One image, as for `as_rgb`, as [3, S, S] float32, normalised, on the CPU."""
        return self.transforms(self.to_tensor(x))

    def forward_batch(self, img_list: Sequence[Any]) -> Tensor:
        """Images of any sizes -> [B, 3, S, S] float32, normalised, on the CPU."""
        return torch.stack([self.transforms(self.to_tensor(image)) for image in img_list])

    def is_standard(self) -> bool:
        """Whether an image becomes model input as in the released models: nothing is replaced."""
        resize = self.transforms
        kinds = type(self) is SAM2Transforms and type(resize) is ResizeAndNormalize
        if not kinds or self.to_tensor is not to_tensor or has_hooks(resize):
            return False
        own = vars(self).keys() | vars(resize).keys()
        if not _FUNCTIONS.keys().isdisjoint(own) or "forward" in own:
            return False
        current = vars(SAM2Transforms)
        return all(current.get(name) is function for name, function in _FUNCTIONS.items())

    def transform_coords(
        self, coords: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None
    ) -> Tensor:
        """coords: [..., 2] (x, y) -> the same shape, in model pixels.

        normalize: coords are pixels of an image of size orig_hw = (height, width), otherwise
            fractions of it. Raises ValueError if normalize is True without orig_hw.
        """
        if not normalize:
            return coords * self.resolution
        if orig_hw is None:
            raise ValueError("orig_hw: expected (height, width) with normalize=True, got None")
        height, width = orig_hw
        size = upload_numbers([width, height], coords.dtype, coords.device)
        return coords / size * self.resolution

    def transform_boxes(
        self, boxes: Tensor, normalize: bool = False, orig_hw: tuple[int, int] | None = None
    ) -> Tensor:
        """boxes: [B, 4] (x0, y0, x1, y1) -> corners [B, 2, 2] in model pixels.

        The other arguments are those of `transform_coords`.
        """
        return self.transform_coords(boxes.reshape(-1, 2, 2), normalize, orig_hw)

    def postprocess_masks(self, masks: Tensor, orig_hw: tuple[int, int]) -> Tensor:
        """`clean`, then upsampled: masks [N, M, h, w] logits -> [N, M, *orig_hw] float32."""
        return upsample(self.clean(masks), (int(orig_hw[0]), int(orig_hw[1])))

    def clean(self, masks: Tensor) -> Tensor:
        """masks: [N, M, h, w] logits -> float32, without small holes and small specks."""
        masks = masks.float()
        if self.max_hole_area > 0 or self.max_sprinkle_area > 0:
            masks = remove_holes_and_specks(
                masks,
                threshold=self.mask_threshold,
                max_hole_area=self.max_hole_area,
                max_speck_area=self.max_sprinkle_area,
            )
        return masks


_FUNCTIONS = {name: value for name, value in vars(SAM2Transforms).items() if callable(value)}
