"""Model inputs equal those of the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from io_media import picture
from PIL import Image

from sam2_fast.io.transforms import (
    PIXEL_MEAN,
    PIXEL_STD,
    frame_input,
    normalize_frame,
    resize_frame,
    resize_image,
    resize_images,
)

MEAN, STD = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))


def official_input(image: np.ndarray, size: int) -> torch.Tensor:
    """torchvision's ToTensor, Resize (antialiased, bilinear, on floats) and Normalize."""
    scaled = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    resized = F.interpolate(
        scaled[None], (size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]
    return resized.sub(MEAN).div(STD)


@pytest.mark.parametrize("shape", [(48, 64), (33, 17), (64, 64), (200, 90), (1, 1)])
def test_a_resized_image_equals_the_official_one(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert torch.equal(resize_image(image, 64), official_input(image, 64))


def test_a_resized_image_equals_that_of_the_installed_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="compares with torchvision")
    image = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    resized = transforms.Resize((64, 64))(transforms.ToTensor()(image))
    expected = transforms.Normalize(PIXEL_MEAN, PIXEL_STD)(resized)
    assert torch.equal(resize_image(image, 64), expected)


def test_a_float_image_gives_the_result_of_the_same_uint8_image() -> None:
    image = picture(3)
    floats = image.astype(np.float32) / np.float32(255)
    assert torch.allclose(resize_image(floats, 32), resize_image(image, 32), atol=1e-6)


def test_a_batch_of_images_of_any_sizes_equals_its_images() -> None:
    images = [torch.from_numpy(picture(i, 40 + 8 * i, 56)).permute(2, 0, 1) for i in range(3)]
    batch = resize_images(images, 32)
    assert batch.shape == (3, 3, 32, 32)
    for resized, image in zip(batch, images, strict=True):
        assert torch.equal(resized, resize_image(image.permute(1, 2, 0).numpy(), 32))


def test_inputs_are_not_modified() -> None:
    floats = torch.rand(1, 3, 32, 32)
    before = floats.clone()
    resize_images(floats, 32)
    assert torch.equal(floats, before)
    frame = torch.full((4, 4, 3), 7, dtype=torch.uint8)
    normalize_frame(frame)
    assert (frame == 7).all()


def test_a_frame_is_resized_by_pillow_as_in_the_official_frame_folder() -> None:
    frame = picture(5)
    expected = np.array(Image.fromarray(frame).resize((32, 32)))
    assert np.array_equal(resize_frame(frame, 32).numpy(), expected)


@pytest.mark.parametrize("shape", [(48, 64), (90, 40), (32, 32)])
def test_frame_input_equals_resizing_and_normalizing(shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert torch.equal(frame_input(frame, 32), normalize_frame(resize_frame(frame, 32)))
    on_meta = frame_input(frame, 32, "meta")
    assert on_meta.shape == (3, 32, 32) and on_meta.device.type == "meta"


def test_arrays_that_torch_cannot_share_are_copied() -> None:
    frame = picture(2)
    read_only = frame.copy()
    read_only.setflags(write=False)
    flipped = frame[::-1, ::-1]
    assert torch.equal(resize_frame(read_only, 16), resize_frame(frame, 16))
    assert torch.equal(resize_image(flipped, 16), resize_image(flipped.copy(), 16))


def test_float32_division_equals_the_official_float64_division_for_every_byte() -> None:
    values = np.arange(256, dtype=np.uint8)
    official = torch.from_numpy(values / 255.0).to(torch.float32)
    image = torch.from_numpy(np.repeat(values, 3).reshape(16, 16, 3))
    ours = normalize_frame(image)
    assert torch.equal(ours, (official.reshape(1, 16, 16) - MEAN) / STD)


def test_a_batch_of_frames_equals_its_frames_and_is_rounded_last() -> None:
    frames = torch.from_numpy(np.stack([picture(0, 16, 16), picture(1, 16, 16)]))
    batch = normalize_frame(frames, dtype=torch.bfloat16)
    assert batch.shape == (2, 3, 16, 16)
    assert torch.equal(batch[1], normalize_frame(frames[1]).to(torch.bfloat16))


def test_constants_cached_in_inference_mode_can_be_used_with_autograd() -> None:
    with torch.inference_mode():
        normalize_frame(torch.zeros(2, 2, 3, dtype=torch.uint8))
    floats = torch.rand(1, 3, 8, 8, requires_grad=True)
    resize_images(floats, 4).sum().backward()
    assert floats.grad is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda: resize_image(np.zeros((4, 4), np.uint8), 8),
        lambda: resize_image(np.zeros((0, 4, 3), np.uint8), 8),
        lambda: resize_image(np.zeros((4, 4, 3), np.uint8), 0),
        lambda: resize_images([], 8),
        lambda: resize_images(torch.zeros(1, 3, 4, 4, dtype=torch.int32), 8),
        lambda: resize_frame(np.zeros((4, 4, 3), np.float32), 8),
        lambda: frame_input(np.zeros((4, 4), np.uint8), 8),
        lambda: normalize_frame(torch.zeros(4, 4, 3)),
        lambda: normalize_frame(torch.zeros(3, 4, 4, dtype=torch.uint8)),
    ],
)
def test_invalid_input_is_a_value_error(call) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
