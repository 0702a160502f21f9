"""Renders the example media: a clip of three textured objects that pass behind each other and a
pillar, a still, and the true masks; and a clip of a camera that moves over a photograph.

    python examples/render.py   # writes next to this file; needs PyAV

Every pixel follows from the formulas below; nothing is random but the seeded texture. FFmpeg's
encoder decides the bytes of the MP4.
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

HERE = Path(__file__).parent
HEIGHT, WIDTH, FRAMES, RATE = 320, 480, 40, 20
FOLDER_FRAMES = 10
PAN = (256, 320)

Field = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def noise(seed: int, height: int, width: int) -> Field:
    """Smooth noise in [0, 1]: four octaves of bilinearly enlarged random grids."""
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
    """Colours between a and b, [H, W, 3] in 0..255."""
    return np.array(a) + (np.array(b) - np.array(a)) * amount[..., None]


def background(y: Field, x: Field) -> Field:
    wall = mix((196, 188, 170), (150, 146, 140), noise(1, HEIGHT, WIDTH))
    floor = mix(
        (120, 84, 56), (84, 58, 40), 0.5 + 0.5 * np.sin(x / 23 + 3 * noise(2, HEIGHT, WIDTH))
    )
    return np.where((y > 228)[..., None], floor, wall)


def ball(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 1: rolls to the right, striped. Signed distance in pixels (negative inside) and
    colour.
    """
    cx, cy, radius = 40 + 400 * t, 212 - 60 * abs(np.sin(2.2 * np.pi * t)), 38
    u, v = x - cx, y - cy
    angle = 400 * t / radius
    stripe = 0.5 + 0.5 * np.tanh(6 * np.sin((u * np.cos(angle) + v * np.sin(angle)) / 5))
    shade = np.clip(1.15 - np.hypot(u + 12, v + 14) / 70, 0.35, 1.1)
    return np.hypot(u, v) - radius, mix((32, 88, 190), (235, 235, 240), stripe) * shade[..., None]


def crate(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 2: turns while it slides to the left, chequered."""
    cx, cy, angle = 390 - 210 * t, 168 + 16 * np.sin(5 * t), 0.3 + 1.4 * t
    u, v = (
        (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle),
        (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle),
    )
    boards = 0.5 + 0.5 * np.tanh(5 * np.sin(u / 6) * np.sin(v / 6))
    return np.maximum(abs(u), abs(v)) - 36, mix((214, 116, 30), (120, 58, 16), boards)


def leaf(t: float, y: Field, x: Field) -> tuple[Field, Field]:
    """Object 3: a five-lobed leaf that sways down, in front of all."""
    cx, cy = 250 + 90 * np.sin(4.2 * t + 0.6), 50 + 190 * t
    u, v = x - cx, y - cy
    turn = np.arctan2(v, u) + 2.5 * t
    edge = 27 + 9 * np.cos(5 * turn)
    veins = 0.5 + 0.5 * np.cos(10 * turn)
    return (np.hypot(u, v) - edge) * 0.8, mix((38, 120, 44), (140, 200, 70), veins)


def pillar(y: Field, x: Field) -> tuple[Field, Field]:
    """Stands in front of the ball and behind the crate; no object of ours."""
    return abs(x - 185) - 17 + 0 * y, mix(
        (90, 92, 98), (168, 170, 176), 0.5 + 0.5 * np.sin(y / 9) * np.cos(x / 4)
    )


def render(t: float) -> tuple[npt.NDArray[np.uint8], dict[int, Mask]]:
    """The picture [H, W, 3] at time t of 0..1, and the visible part of each object."""
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
    """What a hand-held camera sees that moves over a photograph of a cup: a real picture, and a
    clip of our own.
    """
    height, width = PAN
    with Image.open(HERE / "coffee.jpg") as photo:
        zoom, turn = 1.1 + 0.12 * np.sin(3 * t), 0.09 * np.sin(5 * t)
        x, y = (
            photo.width / 2 + 70 * np.sin(2.6 * t) - 40,
            photo.height / 2 + 22 * np.cos(3.4 * t) - 8,
        )
        a, b = np.cos(turn) * zoom, np.sin(turn) * zoom
        place = (
            a,
            -b,
            x - a * width / 2 + b * height / 2,
            b,
            a,
            y - b * width / 2 - a * height / 2,
        )
        return np.asarray(
            photo.convert("RGB").transform(
                (width, height), Image.Transform.AFFINE, place, Image.Resampling.BICUBIC
            )
        )


@contextmanager
def writing(
    name: str, height: int, width: int
) -> Iterator[Callable[[npt.NDArray[np.uint8]], None]]:
    """Within, a function that adds a picture [H, W, 3] to the video."""
    with av.open(str(HERE / name), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "23", "preset": "slow", "g": "20", "threads": "1"}
        yield lambda image: container.mux(
            stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        )
        container.mux(stream.encode(None))


def main() -> None:
    """Write clip.mp4, pan.mp4, clip_frames/, still.png and the two truth files."""
    (HERE / "clip_frames").mkdir(exist_ok=True)
    truth = JsonWriter(HERE / "clip_truth.json", HEIGHT, WIDTH)
    with writing("clip.mp4", HEIGHT, WIDTH) as write:
        for index in range(FRAMES):
            image, masks = render(index / (FRAMES - 1))
            truth.write(index, masks)
            write(image)
            if index < FOLDER_FRAMES:
                Image.fromarray(image).save(HERE / "clip_frames" / f"{index:05d}.jpg", quality=88)
    with writing("pan.mp4", *PAN) as write:
        for index in range(FRAMES):
            write(pan(index / (FRAMES - 1)))
    truth.close()
    image, masks = render(0.14)
    Image.fromarray(image).save(HERE / "still.png", optimize=True)
    still = JsonWriter(HERE / "still_truth.json", HEIGHT, WIDTH)
    still.write(0, masks)
    still.close()


if __name__ == "__main__":
    main()
