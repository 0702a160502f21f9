"""Model input has the official numbers."""

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


def as_torchvision_does(image: np.ndarray, size: int) -> torch.Tensor:
    """ToTensor, Resize (antialiased bilinear on float), Normalize, step by step."""
    scaled = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    resized = F.interpolate(
        scaled[None], (size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]
    return resized.sub(MEAN).div(STD)


@pytest.mark.parametrize("shape", [(48, 64), (33, 17), (64, 64), (200, 90), (1, 1)])
def test_an_image_is_resized_with_the_official_numbers(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert torch.equal(resize_image(image, 64), as_torchvision_does(image, 64))


def test_an_image_is_resized_as_the_installed_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="compares with torchvision")
    image = np.random.default_rng(0).integers(0, 256, (97, 61, 3), dtype=np.uint8)
    whole = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize((64, 64)),
            transforms.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    assert torch.equal(resize_image(image, 64), whole(image))


def test_a_float_image_gives_the_numbers_of_the_same_uint8_image() -> None:
    image = picture(3)
    assert torch.allclose(
        resize_image(image.astype(np.float32) / np.float32(255), 32),
        resize_image(image, 32),
        atol=1e-6,
    )


def test_a_batch_is_its_images_one_by_one_whatever_their_sizes() -> None:
    images = [torch.from_numpy(picture(i, 40 + 8 * i, 56)).permute(2, 0, 1) for i in range(3)]
    together = resize_images(images, 32)
    assert together.shape == (3, 3, 32, 32)
    for one, image in zip(together, images, strict=True):
        assert torch.equal(one, resize_image(image.permute(1, 2, 0).numpy(), 32))


def test_inputs_are_left_as_they_were() -> None:
    floats = torch.rand(1, 3, 32, 32)
    before = floats.clone()
    resize_images(floats, 32)
    assert torch.equal(floats, before)
    frame = torch.full((4, 4, 3), 7, dtype=torch.uint8)
    normalize_frame(frame)
    assert (frame == 7).all()


def test_a_frame_is_resized_with_the_kernel_of_the_official_frame_folder() -> None:
    frame = picture(5)
    assert np.array_equal(
        resize_frame(frame, 32).numpy(), np.array(Image.fromarray(frame).resize((32, 32)))
    )


@pytest.mark.parametrize("shape", [(48, 64), (90, 40), (32, 32)])
def test_a_frame_goes_to_model_input_in_one_pass_with_the_numbers_of_two(
    shape: tuple[int, int],
) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert torch.equal(frame_input(frame, 32), normalize_frame(resize_frame(frame, 32)))
    elsewhere = frame_input(frame, 32, "meta")
    assert elsewhere.shape == (3, 32, 32) and elsewhere.device.type == "meta"


def test_arrays_that_torch_cannot_share_are_copied() -> None:
    frame = picture(2)
    locked, turned = frame.copy(), frame[::-1, ::-1]
    locked.setflags(write=False)
    assert torch.equal(resize_frame(locked, 16), resize_frame(frame, 16))
    assert torch.equal(resize_image(turned, 16), resize_image(turned.copy(), 16))


def test_float32_division_of_bytes_equals_the_official_float64_division_for_all_256_values() -> (
    None
):
    values = np.arange(256, dtype=np.uint8)
    official = torch.from_numpy(values / 255.0).to(torch.float32)
    image = torch.from_numpy(np.repeat(values, 3).reshape(16, 16, 3))
    ours = normalize_frame(image)
    assert torch.equal(ours, (official.reshape(1, 16, 16) - MEAN) / STD)


def test_a_batch_of_frames_equals_its_frames_and_dtype_is_rounded_last() -> None:
    frames = torch.from_numpy(np.stack([picture(0, 16, 16), picture(1, 16, 16)]))
    both = normalize_frame(frames, dtype=torch.bfloat16)
    assert both.shape == (2, 3, 16, 16)
    assert torch.equal(both[1], normalize_frame(frames[1]).to(torch.bfloat16))


def test_constants_made_in_inference_mode_serve_outside_of_it() -> None:
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
def test_meaningless_input_is_a_value_error(call) -> None:
    with pytest.raises(ValueError, match="expected"):
        call()
