"""Union-find in Triton: every program owns a block of pixels; parents are stored in the labels and
only ever decrease.

Four launches, as in csrc/cuda/connected_components.cu but without tiles: each pixel is linked
straight in global memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK = 1024  # pixels of a program: 4 a thread with 8 warps


@triton.jit
def _find_root(parent, index, active):
    """Follow parents until none of the block's active chains moves."""
    up = tl.load(parent + index, mask=active, other=0, volatile=True)
    up = tl.where(active, up, index)
    while tl.max((up != index).to(tl.int32), axis=0) > 0:
        index = up
        next_up = tl.load(parent + index, mask=active, other=0, volatile=True)
        up = tl.where(active, next_up, index)
    return index


@triton.jit
def _unite(parent, a, b, active):
    """Link the components of a[i] and b[i] for every active i: the larger root goes under the
    smaller one."""
    while tl.max(active.to(tl.int32), axis=0) > 0:
        a = _find_root(parent, a, active)
        b = _find_root(parent, b, active)
        active = active & (a != b)
        high = tl.maximum(a, b)
        low = tl.minimum(a, b)
        before = tl.atomic_min(parent + high, low, mask=active)
        # where `high` was no root any more, its former parent must be united with `low` as well
        active = active & (before != high)
        a = tl.where(active, before, a)
        b = tl.where(active, low, b)


@kernel
def init_kernel(masks, labels, areas, total, pixels, BLOCK: tl.constexpr):
    """Every foreground pixel is its own root; areas start at zero.

    Pointers, all contiguous:
    masks: 0 for background [N, H, W] uint8.
    labels: index of the parent within the mask, -1 for background [N, H, W] int32.
    areas: [N, H, W] int32.

    total, pixels: int, of all masks and of one. Grid: (cdiv(total, BLOCK),).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    on = tl.load(masks + i, mask=inside, other=0) != 0
    tl.store(labels + i, tl.where(on, (i % pixels).to(tl.int32), -1), mask=inside)
    tl.store(areas + i, tl.zeros([BLOCK], tl.int32), mask=inside)


@triton.jit
def _link(parent, index, on, y, x, width, dy: tl.constexpr, dx: tl.constexpr):
    """Unite foreground pixels with their neighbour at (dy, dx), where that is foreground of the
    same mask."""
    linked = on & (y + dy >= 0) & (x + dx >= 0) & (x + dx < width)
    other = index + dy * width + dx
    linked = linked & (tl.load(parent + other, mask=linked, other=-1) != -1)
    _unite(parent, index, tl.where(linked, other, index), linked)


@kernel(do_not_specialize=["height"])
def merge_kernel(labels, height, width, BLOCK: tl.constexpr):
    """Link each pixel with its left, upper left, upper and upper right neighbour. A program stays
    within one mask.

    Pointers, all contiguous:
    labels: parents [N, height, width] int32.

    height, width: int. Grid: (N * cdiv(height * width, BLOCK),).
    """
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(pixels, BLOCK)
    mask_index = tl.program_id(0).to(tl.int64) // blocks
    parent = labels + mask_index * pixels
    index = (tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
    inside = index < pixels
    y = index // width
    x = index % width
    on = inside & (tl.load(parent + index, mask=inside, other=-1) != -1)
    _link(parent, index, on, y, x, width, 0, -1)
    _link(parent, index, on, y, x, width, -1, -1)
    _link(parent, index, on, y, x, width, -1, 0)
    _link(parent, index, on, y, x, width, -1, 1)


@kernel(do_not_specialize=["height"])
def count_kernel(labels, areas, height, width, BLOCK: tl.constexpr):
    """Replace the parent by the root and add one to the root's area.

    Pointers, all contiguous:
    labels: parents, then roots [N, height, width] int32.
    areas: [N, height, width] int32.

    height, width: int. Grid: (N * cdiv(height * width, BLOCK),).
    """
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(pixels, BLOCK)
    base = tl.program_id(0).to(tl.int64) // blocks * pixels
    index = (tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
    inside = index < pixels
    on = inside & (tl.load(labels + base + index, mask=inside, other=-1) != -1)
    root = _find_root(labels + base, tl.where(on, index, 0), on)
    tl.store(labels + base + index, root, mask=on)
    tl.atomic_add(areas + base + root, 1, mask=on)


@kernel
def spread_kernel(labels, areas, total, pixels, BLOCK: tl.constexpr):
    """Take the area from the root and turn the root's index into a label.

    Pointers, all contiguous:
    labels: roots, then labels from 1 on, 0 for background [N, H, W] int32.
    areas: of roots, then of all pixels [N, H, W] int32.

    total, pixels: int, of all masks and of one. Grid: (cdiv(total, BLOCK),).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    root = tl.load(labels + i, mask=inside, other=-1)
    on = inside & (root != -1)
    area = tl.load(areas + i // pixels * pixels + root, mask=on, other=0)
    tl.store(areas + i, area, mask=on)
    tl.store(labels + i, root + 1, mask=inside)


def connected_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    """masks: [N, H, W] bool or uint8, contiguous -> labels and areas, int32 [N, H, W]. Launched on
    the current stream."""
    count, height, width = masks.shape
    labels = torch.empty(masks.shape, dtype=torch.int32, device=masks.device)
    areas = torch.empty_like(labels)
    total = masks.numel()
    pixels = height * width
    if total == 0:
        return labels, areas
    flat = masks.view(torch.uint8)
    over_all = (triton.cdiv(total, BLOCK),)
    over_masks = (count * triton.cdiv(pixels, BLOCK),)
    with torch.cuda.device_of(masks):
        init_kernel[over_all](
            masks=flat, labels=labels, areas=areas, total=total, pixels=pixels, BLOCK=BLOCK
        )
        merge_kernel[over_masks](labels=labels, height=height, width=width, BLOCK=BLOCK)
        count_kernel[over_masks](
            labels=labels, areas=areas, height=height, width=width, BLOCK=BLOCK
        )
        spread_kernel[over_all](labels=labels, areas=areas, total=total, pixels=pixels, BLOCK=BLOCK)
    return labels, areas
