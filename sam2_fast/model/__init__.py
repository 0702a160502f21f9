"""The network: modules without state between calls. `Sam2` is the whole model."""

from sam2_fast.model.sam2 import Sam2

__all__ = ["Sam2"]
