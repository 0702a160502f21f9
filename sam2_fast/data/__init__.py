"""Videos with masks for training and evaluation: synthetic ones, and readers of annotations.

The readers support annotation folders, SA-V and SA-1B files.
"""

from sam2_fast.data.folders import Annotations, videos_in
from sam2_fast.data.sa1b import Sa1bAnnotations
from sam2_fast.data.sav import SavAnnotations
from sam2_fast.data.synthetic import Frame, SyntheticVideo, World

__all__ = [
    "Annotations",
    "Frame",
    "Sa1bAnnotations",
    "SavAnnotations",
    "SyntheticVideo",
    "World",
    "videos_in",
]
