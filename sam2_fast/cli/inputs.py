"""Read the pictures and mask files of a command, upright, and print notes about them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sam2_fast.cli.prompts import Prompt
from sam2_fast.cli.report import note
from sam2_fast.io.frame_folder import frame_files
from sam2_fast.io.images import RGB8, depth_note, image_orientation, load_image
from sam2_fast.io.mask_files import note_on_mask
from sam2_fast.io.mask_png import Mask
from sam2_fast.io.masks import load_mask
from sam2_fast.io.picture_file import is_picture

_UPRIGHT = 1


def read_picture(path: Path, max_pixels: int) -> RGB8:
    """A picture [H, W, 3] uint8, upright. Notes go to stderr."""
    pixels = load_image(path, max_pixels=max_pixels, upright=True)
    note_picture(path, max_pixels)
    return pixels


def read_masks(prompts: Iterable[Prompt], max_pixels: int) -> dict[Prompt, Mask]:
    """The masks [H, W] bool, upright, of the prompts that name a file. Notes go to stderr."""
    masks = {
        prompt: load_mask(prompt.mask, max_pixels=max_pixels, upright=True)
        for prompt in prompts
        if prompt.mask is not None
    }
    for prompt, mask in masks.items():
        remark = None if prompt.mask is None else note_on_mask(prompt.mask, mask)
        if remark is not None:
            note(f"note: {remark}")
    return masks


def note_picture(path: Path, max_pixels: int) -> None:
    """Print notes on a picture, or on the first one of a folder: orientation tag, few bits."""
    file = frame_files(path)[0] if path.is_dir() else path
    if not is_picture(file):
        return
    for remark in (_orientation_note(file), depth_note(file, max_pixels=max_pixels)):
        if remark is not None:
            note(f"note: {remark}")


def _orientation_note(file: Path) -> str | None:
    tag = image_orientation(file)
    if tag == _UPRIGHT:
        return None
    return (
        f"image {file}: has the orientation tag {tag}; coordinates, masks and overlay are those of "
        "the upright image, as viewers show it"
    )
