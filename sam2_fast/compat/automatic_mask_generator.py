"""`sam2.automatic_mask_generator`."""

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
