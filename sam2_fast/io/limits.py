"""How large a file may be before it is refused unread. Every reader takes the limit as an argument,
so that a caller can raise it.
"""

from __future__ import annotations

MAX_PIXELS = 2**27
"""Pixels of one image or frame that is read from a file (134 million: 402 MB as RGB)."""

MAX_FRAMES = 1_000_000
"""Frames of one video (9 hours at 30 frames per second)."""


def check_pixels(width: int, height: int, max_pixels: int, what: str) -> None:
    """Raise ValueError unless a picture of `width` x `height` pixels is non-empty and within the
    limit; `what` names it.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"{what}: expected at least one pixel, got {width} x {height}")
    if width * height > max_pixels:
        raise ValueError(
            f"{what}: {width} x {height} is {width * height} pixels, the limit is {max_pixels}; "
            f"raise it with max_pixels="
        )
