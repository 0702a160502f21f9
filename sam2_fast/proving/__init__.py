"""Kernels prove themselves on a card before they run there: correct first, then fast.

The registry of ops asks `gate` before it takes a kernel on a GPU. See docs/proving.md.
"""

from __future__ import annotations

from sam2_fast.proving.switch import off as off

__all__ = ["off"]
