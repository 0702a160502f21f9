"""The network: pure modules, no state between calls. `Sam2` is the door."""

from sam2_fast.model.sam2 import Sam2

__all__ = ["Sam2"]
