"""`sam2.utils.transforms`."""

from sam2_fast.image.transforms import SAM2Transforms as SAM2Transforms
