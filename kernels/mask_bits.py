"""Bits of masks in words of 32: how many are set, and where they change along the columns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_bits(word):
    """How many bits of each uint32 are set."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def find_changes(bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left):
    """Bits of [COLUMNS, WORDS] words that differ from the pixel before, in the order of the canvas;
    the one past a column is its margin."""
    inside = (x < width)[:, None] & (word < words)[None, :]
    column = bits + (mask * width + x)[:, None] * words
    now = tl.load(column + word[None, :], inside, 0).to(tl.uint32, bitcast=True)
    word_before = tl.load(column + word[None, :] - 1, inside & (word > 0)[None, :], 0)
    before = word_before.to(tl.uint32, bitcast=True) >> 31
    # columns of the canvas are contiguous (a scalar mask is none to the interpreter)
    whole = x * 0 + height == canvas_height
    last_at = bits + (mask * width + x - 1) * words + (height - 1) // 32
    last = tl.load(last_at, whole & (x > 0) & (x < width), 0)
    ended = (last.to(tl.uint32, bitcast=True) >> ((height - 1) % 32)) & 1
    before = tl.where((word == 0)[None, :], ended[:, None], before)
    changed = now ^ ((now << 1) | before)
    # after a column's last pixel: the next column, which compares with it; the end of the canvas;
    # or the margin
    end = whole & (x < width - 1)
    end = end | ((left + x + 1 == canvas_width) & (x * 0 + top + height == canvas_height))
    drop = end[:, None] & (word == height // 32)[None, :]
    return tl.where(drop, changed & ((1 << (height % 32)).to(tl.uint32) - 1), changed)
