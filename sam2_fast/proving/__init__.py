"""Proofs that a kernel is correct on a card, and choices of its fastest form.

The registry of ops calls `gate` before it runs a kernel on a GPU. See docs/proving.md.
"""

from __future__ import annotations

from sam2_fast.proving.switch import off as off

__all__ = ["off"]
