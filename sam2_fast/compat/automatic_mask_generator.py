"""`sam2.automatic_mask_generator`."""

from sam2_fast.mask_generator import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
