"""`sam2.utils.transforms`."""

from sam2_fast.sam2_transforms import SAM2Transforms as SAM2Transforms
