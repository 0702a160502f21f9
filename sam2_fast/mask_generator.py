"""The former home of `sam2_fast.image.automatic`, kept for programs that import from it."""

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
