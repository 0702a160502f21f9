"""Pictures for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture that is different for every index: [H, W, 3] uint8."""
    y, x = np.mgrid[:height, :width]
    red = (x * 3 + index * 11) % 256
    return np.stack([red, y * 4 % 256, np.full_like(x, index * 7 % 256)], axis=2).astype(np.uint8)
