"""The former name of `sam2_fast.image.automatic`, kept for programs that import it."""

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator as SAM2AutomaticMaskGenerator
