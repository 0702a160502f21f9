"""Masks as bits in 32-bit words: number of set bits, and changes along the columns."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_bits(word):
    """Number of set bits in each uint32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return ((((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def changed_bits(bits, mask, x, word, height, width, words, canvas_height, canvas_width, top, left):
    """Words [COLUMNS, WORDS] with a bit set for each pixel that differs from the previous pixel.

    Pixels are in the column-major order of the canvas. Bit `height` of a column stands for the
    pixel after it, in the margin.
    """
    in_bounds = (x < width)[:, None] & (word < words)[None, :]
    column = bits + (mask * width + x)[:, None] * words
    current = tl.load(column + word[None, :], in_bounds, 0).to(tl.uint32, bitcast=True)
    previous_word = tl.load(column + word[None, :] - 1, in_bounds & (word > 0)[None, :], 0)
    carry = previous_word.to(tl.uint32, bitcast=True) >> 31
    # at full height, the pixel before a column's first one is the last of the previous column
    # (`x * 0 +` makes a block, since the interpreter does not accept a scalar mask)
    full_height = x * 0 + height == canvas_height
    last_ptrs = bits + (mask * width + x - 1) * words + (height - 1) // 32
    last_word = tl.load(last_ptrs, full_height & (x > 0) & (x < width), 0)
    last_bit = (last_word.to(tl.uint32, bitcast=True) >> ((height - 1) % 32)) & 1
    carry = tl.where((word == 0)[None, :], last_bit[:, None], carry)
    changed = current ^ ((current << 1) | carry)
    # without a margin below a column, its end is compared by the next column, or is not a change
    no_margin = full_height & (x < width - 1)
    is_canvas_end = (left + x + 1 == canvas_width) & (x * 0 + top + height == canvas_height)
    no_margin = no_margin | is_canvas_end
    drop = no_margin[:, None] & (word == height // 32)[None, :]
    return tl.where(drop, changed & ((1 << (height % 32)).to(tl.uint32) - 1), changed)
