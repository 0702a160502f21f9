"""Render the media in this folder: two videos, a still picture, and true masks.

    python examples/render.py   # writes to the folder of this file; needs PyAV

In clip.mp4 three textured objects pass behind each other and behind a pillar. In pan.mp4 a camera
moves over a photograph. Every pixel is computed by the formulas below; noise has fixed seeds. The
bytes of the MP4 files depend on FFmpeg's encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from sam2_fast.io.masks import JsonWriter

FOLDER = Path(__file__).parent
HEIGHT, WIDTH = 320, 480
FRAMES = 40
RATE = 20  # frames per second
FOLDER_FRAMES = 10  # frames in clip_frames/
PAN = (256, 320)  # height and width of pan.mp4

Field = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def noise(seed: int, height: int, width: int) -> Field:
    """Smooth noise in [0, 1], from four octaves of random grids that are enlarged bilinearly."""
    source = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for octave in range(4):
        grid = source.random((3 << octave, 4 << octave)).astype(np.float32)
        total += (
            np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BILINEAR))
            / 2**octave
        )
    return (total - total.min()) / (total.max() - total.min())


def mix(a: tuple[int, int, int], b: tuple[int, int, int], amount: Field) -> Field:
    """Colours between a and b: [H, W, 3] in 0..255."""
    return np.array(a) + (np.array(b) - np.array(a)) * amount[..., None]


def background(y: Field, x: Field) -> Field:
    """A wall above a wooden floor."""
    wall = mix((196, 188, 170), (150, 146, 140), noise(1, HEIGHT, WIDTH))
    floor = mix(
        (120, 84, 56), (84, 58, 40), 0.5 + 0.5 * np.sin(x / 23 + 3 * noise(2, HEIGHT, WIDTH))
    )
    return np.where((y > 228)[..., None], floor, wall)


def ball(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 1, a striped ball that rolls to the right.

    Returns the signed distance to its outline in pixels, which is negative inside, and its colour.
    """
    cx, cy = 40 + 400 * t, 212 - 60 * abs(np.sin(2.2 * np.pi * t))
    radius = 38
    u, v = x - cx, y - cy
    angle = 400 * t / radius
    stripe = 0.5 + 0.5 * np.tanh(6 * np.sin((u * np.cos(angle) + v * np.sin(angle)) / 5))
    shade = np.clip(1.15 - np.hypot(u + 12, v + 14) / 70, 0.35, 1.1)
    return np.hypot(u, v) - radius, mix((32, 88, 190), (235, 235, 240), stripe) * shade[..., None]


def crate(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 2, a chequered crate that rotates while it moves to the left. Returns as `ball`."""
    cx, cy = 390 - 210 * t, 168 + 16 * np.sin(5 * t)
    angle = 0.3 + 1.4 * t
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    boards = 0.5 + 0.5 * np.tanh(5 * np.sin(u / 6) * np.sin(v / 6))
    return np.maximum(abs(u), abs(v)) - 36, mix((214, 116, 30), (120, 58, 16), boards)


def leaf(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 3, a leaf with five lobes that falls in front of all others. Returns as `ball`."""
    cx, cy = 250 + 90 * np.sin(4.2 * t + 0.6), 50 + 190 * t
    u, v = x - cx, y - cy
    angle = np.arctan2(v, u) + 2.5 * t
    radius = 27 + 9 * np.cos(5 * angle)
    veins = 0.5 + 0.5 * np.cos(10 * angle)
    return (np.hypot(u, v) - radius) * 0.8, mix((38, 120, 44), (140, 200, 70), veins)


def pillar(y: Field, x: Field) -> tuple[Field, Field]:
    """A pillar in front of the ball and behind the crate. It has no mask. Returns as `ball`."""
    return abs(x - 185) - 17 + 0 * y, mix(
        (90, 92, 98), (168, 170, 176), 0.5 + 0.5 * np.sin(y / 9) * np.cos(x / 4)
    )


def render(t: float) -> tuple[npt.NDArray[np.uint8], dict[int, Mask]]:
    """The picture [H, W, 3] at time t in 0..1, and by number the visible part of each object."""
    y, x = (axis.astype(np.float64) for axis in np.mgrid[:HEIGHT, :WIDTH])
    image = background(y, x)
    masks: dict[int, Mask] = {}
    for number, (distance, color) in (
        (1, ball(t, y, x)),
        (0, pillar(y, x)),
        (2, crate(t, y, x)),
        (3, leaf(t, y, x)),
    ):
        cover = np.clip(0.5 - distance, 0, 1)
        image = image + (color - image) * cover[..., None]
        solid = cover > 0.5
        masks = {other: mask & ~solid for other, mask in masks.items()}
        if number:
            masks[number] = solid
    grain = np.random.default_rng(round(t * 1000)).normal(0, 2.5, (HEIGHT, WIDTH, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8), dict(sorted(masks.items()))


def pan(t: float) -> npt.NDArray[np.uint8]:
    """The picture [H, W, 3] at time t in 0..1 of a camera that moves over a photograph of a cup.

    The video has the content of a real picture, and can be distributed with the package.
    """
    height, width = PAN
    with Image.open(FOLDER / "coffee.jpg") as photo:
        zoom = 1.1 + 0.12 * np.sin(3 * t)
        angle = 0.09 * np.sin(5 * t)
        x = photo.width / 2 + 70 * np.sin(2.6 * t) - 40
        y = photo.height / 2 + 22 * np.cos(3.4 * t) - 8
        a, b = np.cos(angle) * zoom, np.sin(angle) * zoom
        coefficients = (
            a,
            -b,
            x - a * width / 2 + b * height / 2,
            b,
            a,
            y - b * width / 2 - a * height / 2,
        )
        return np.asarray(
            photo.convert("RGB").transform(
                (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
            )
        )


@contextmanager
def video_writer(
    name: str, height: int, width: int
) -> Iterator[Callable[[npt.NDArray[np.uint8]], None]]:
    """A context with a function that appends a picture [H, W, 3] to the video."""
    with av.open(str(FOLDER / name), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height = height
        stream.width = width
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "slow", "g": "20", "threads": "1"}
        yield lambda image: container.mux(
            stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        )
        container.mux(stream.encode(None))


def main() -> None:
    """Write all files of this folder that are rendered."""
    (FOLDER / "clip_frames").mkdir(exist_ok=True)
    truth = JsonWriter(FOLDER / "clip_truth.json", HEIGHT, WIDTH)
    with video_writer("clip.mp4", HEIGHT, WIDTH) as write:
        for index in range(FRAMES):
            image, masks = render(index / (FRAMES - 1))
            truth.write(index, masks)
            write(image)
            if index < FOLDER_FRAMES:
                Image.fromarray(image).save(FOLDER / "clip_frames" / f"{index:05d}.jpg", quality=88)
    with video_writer("pan.mp4", *PAN) as write:
        for index in range(FRAMES):
            write(pan(index / (FRAMES - 1)))
    truth.close()
    image, masks = render(0.14)
    Image.fromarray(image).save(FOLDER / "still.png", optimize=True)
    still = JsonWriter(FOLDER / "still_truth.json", HEIGHT, WIDTH)
    still.write(0, masks)
    still.close()


if __name__ == "__main__":
    main()
