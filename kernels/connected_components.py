"""Connected components by union-find in Triton.

A program owns a block of pixels; the labels hold the parents, which only ever decrease. There are
four launches, as in csrc/cuda/connected_components.cu but without tiles in shared memory: pixels
are linked in global memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from sam2_fast.kernels.launch import kernel
from torch import Tensor

BLOCK = 1024  # pixels of a program: 4 per thread with 8 warps


@triton.jit
def _find_root(parent, index, active):
    """The roots of all active indices of the block."""
    next_index = tl.load(parent + index, mask=active, other=0, volatile=True)
    next_index = tl.where(active, next_index, index)
    while tl.max((next_index != index).to(tl.int32), axis=0) > 0:
        index = next_index
        loaded = tl.load(parent + index, mask=active, other=0, volatile=True)
        next_index = tl.where(active, loaded, index)
    return index


@triton.jit
def _unite(parent, a, b, active):
    """Link the components of a[i] and b[i] for every active i.

    The smaller root becomes the parent of the larger one.
    """
    while tl.max(active.to(tl.int32), axis=0) > 0:
        a = _find_root(parent, a, active)
        b = _find_root(parent, b, active)
        active = active & (a != b)
        larger = tl.maximum(a, b)
        smaller = tl.minimum(a, b)
        old_parent = tl.atomic_min(parent + larger, smaller, mask=active)
        # if `larger` was no longer a root, its old parent must be united with `smaller` as well
        active = active & (old_parent != larger)
        a = tl.where(active, old_parent, a)
        b = tl.where(active, smaller, b)


@kernel
def init_kernel(masks, labels, areas, num_pixels, pixels_per_mask, BLOCK: tl.constexpr):
    """Make every foreground pixel its own root, and all areas zero.

    Pointers, all contiguous:
    masks: [N, H, W] uint8, 0 for background.
    labels: output, the parent's index within the mask, or -1 for background [N, H, W] int32.
    areas: output [N, H, W] int32.

    num_pixels: int, of all masks. pixels_per_mask: int. Grid: (cdiv(num_pixels, BLOCK),).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_bounds = i < num_pixels
    foreground = tl.load(masks + i, mask=in_bounds, other=0) != 0
    parent = tl.where(foreground, (i % pixels_per_mask).to(tl.int32), -1)
    tl.store(labels + i, parent, mask=in_bounds)
    tl.store(areas + i, tl.zeros([BLOCK], tl.int32), mask=in_bounds)


@triton.jit
def _link(parent, index, foreground, y, x, width, dy: tl.constexpr, dx: tl.constexpr):
    """Unite foreground pixels with their neighbour at (dy, dx), if it is foreground, too.

    Neighbours outside the mask are ignored.
    """
    linked = foreground & (y + dy >= 0) & (x + dx >= 0) & (x + dx < width)
    neighbour = index + dy * width + dx
    linked = linked & (tl.load(parent + neighbour, mask=linked, other=-1) != -1)
    _unite(parent, index, tl.where(linked, neighbour, index), linked)


@kernel(do_not_specialize=["height"])
def merge_kernel(labels, height, width, BLOCK: tl.constexpr):
    """Link each pixel with its left, upper left, upper and upper right neighbour.

    Pointers, all contiguous:
    labels: parents [N, height, width] int32.

    height, width: int. All pixels of a program belong to one mask.
    Grid: (N * cdiv(height * width, BLOCK),).
    """
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(pixels, BLOCK)
    mask_index = tl.program_id(0).to(tl.int64) // blocks
    parent = labels + mask_index * pixels
    index = (tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
    in_bounds = index < pixels
    y = index // width
    x = index % width
    foreground = in_bounds & (tl.load(parent + index, mask=in_bounds, other=-1) != -1)
    _link(parent, index, foreground, y, x, width, 0, -1)
    _link(parent, index, foreground, y, x, width, -1, -1)
    _link(parent, index, foreground, y, x, width, -1, 0)
    _link(parent, index, foreground, y, x, width, -1, 1)


@kernel(do_not_specialize=["height"])
def count_kernel(labels, areas, height, width, BLOCK: tl.constexpr):
    """Replace each parent by the root, and add one to the root's area.

    Pointers, all contiguous:
    labels: input parents, output roots [N, height, width] int32.
    areas: [N, height, width] int32.

    height, width: int. Grid: (N * cdiv(height * width, BLOCK),).
    """
    pixels = height.to(tl.int64) * width
    blocks = tl.cdiv(pixels, BLOCK)
    base = tl.program_id(0).to(tl.int64) // blocks * pixels
    index = (tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
    in_bounds = index < pixels
    foreground = in_bounds & (tl.load(labels + base + index, mask=in_bounds, other=-1) != -1)
    root = _find_root(labels + base, tl.where(foreground, index, 0), foreground)
    tl.store(labels + base + index, root, mask=foreground)
    tl.atomic_add(areas + base + root, 1, mask=foreground)


@kernel
def spread_kernel(labels, areas, num_pixels, pixels_per_mask, BLOCK: tl.constexpr):
    """Copy the root's area to all pixels of its component, and replace roots by labels.

    Pointers, all contiguous:
    labels: input roots, output root + 1, or 0 for background [N, H, W] int32.
    areas: input areas at roots only, output areas at all pixels [N, H, W] int32.

    num_pixels: int, of all masks. pixels_per_mask: int. Grid: (cdiv(num_pixels, BLOCK),).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    in_bounds = i < num_pixels
    root = tl.load(labels + i, mask=in_bounds, other=-1)
    foreground = in_bounds & (root != -1)
    first_pixel = i // pixels_per_mask * pixels_per_mask
    area = tl.load(areas + first_pixel + root, mask=foreground, other=0)
    tl.store(areas + i, area, mask=foreground)
    tl.store(labels + i, root + 1, mask=in_bounds)


def connected_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and areas [N, H, W] int32, computed on the current stream.

    masks: [N, H, W] bool or uint8, contiguous.
    """
    count, height, width = masks.shape
    labels = torch.empty(masks.shape, dtype=torch.int32, device=masks.device)
    areas = torch.empty_like(labels)
    num_pixels = masks.numel()
    pixels_per_mask = height * width
    if num_pixels == 0:
        return labels, areas
    flat_grid = (triton.cdiv(num_pixels, BLOCK),)
    mask_grid = (count * triton.cdiv(pixels_per_mask, BLOCK),)
    with torch.cuda.device_of(masks):
        init_kernel[flat_grid](
            masks=masks.view(torch.uint8),
            labels=labels,
            areas=areas,
            num_pixels=num_pixels,
            pixels_per_mask=pixels_per_mask,
            BLOCK=BLOCK,
        )
        merge_kernel[mask_grid](labels=labels, height=height, width=width, BLOCK=BLOCK)
        count_kernel[mask_grid](labels=labels, areas=areas, height=height, width=width, BLOCK=BLOCK)
        spread_kernel[flat_grid](
            labels=labels,
            areas=areas,
            num_pixels=num_pixels,
            pixels_per_mask=pixels_per_mask,
            BLOCK=BLOCK,
        )
    return labels, areas
