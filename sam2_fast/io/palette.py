"""The palette of DAVIS and Pascal VOC, in which annotations store object ids."""

from __future__ import annotations

import numpy as np


def _voc_palette() -> bytes:
    """R, G, B of 256 colours.

    Bits 0, 1, 2 of an index become the top bits of red, green and blue; bits 3, 4, 5 become the
    next lower ones, and so on.
    """
    index = np.arange(256)[:, None]
    bits = sum(((index >> (3 * level + np.arange(3))) & 1) << (7 - level) for level in range(8))
    return np.asarray(bits, dtype=np.uint8).tobytes()


DAVIS_PALETTE = _voc_palette()
"""The palette of DAVIS and Pascal VOC: 768 bytes, R, G, B of 256 indices."""
