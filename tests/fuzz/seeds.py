"""Seeds of the corpora, written by the project's own writers, by Pillow and by PyAV."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from sam2_fast.io import encode_rle
from sam2_fast.io.mask_png import save_davis, save_mask
from sam2_fast.io.mask_writers import FrameLabel, JsonWriter
from sam2_fast.io.video_writer import VideoWriter

MASK = np.zeros((12, 16), dtype=bool)
MASK[3:9, 4:11] = True
TABLE = {
    "model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
    "epoch": 3,
    "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.999)},
}
LINES = (
    "++model.image_size=512\n+model.fill_hole_area=3\nmodel.image_encoder.trunk.drop_path_rate=.1",
    "~model.fill_hole_area\n++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=1",
    "++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor\n++model.a.b=[1,null,'x']",
    "configs/sam2.1/sam2.1_hiera_t.yaml\ntiny\nsam2_hiera_b+\nnano",
)
NAMES = (
    "0.jpg\n1.jpg\n10.jpg",
    "frame_1.png\nframe_2.PNG",
    "1.5.jpg\n1.25.jpg",
    "a.webp",
    "-3.bmp",
)


def _frames(count: int = 4, height: int = 24, width: int = 32) -> list[Any]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (height, width, 3)).astype(np.uint8) for _ in range(count)]


def _torch(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


@cache
def archives() -> list[bytes]:
    parameter = {"p": torch.nn.Parameter(torch.ones(2))}
    return [_torch(TABLE), _torch(parameter), _torch({"state_dict": TABLE["model"], "x": [1.5]})]


@cache
def legacy() -> list[bytes]:
    return [_torch(content, _use_new_zipfile_serialization=False) for content in (TABLE, [1])]


@cache
def safetensors() -> list[bytes]:
    return [save({"a": torch.ones(3), "model.b": torch.zeros(2, 2)}, {"key": "value"})]


def _picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def pictures() -> list[bytes]:
    """Stills of every format and mode."""
    colour = Image.fromarray(_frames(1)[0])
    seeds = [
        _picture(colour, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
    ]
    for mode in ("1", "L", "LA", "P", "RGBA", "I", "I;16", "F", "CMYK"):
        kind = "TIFF" if mode in ("F", "I", "CMYK") else "PNG"
        seeds.append(_picture(colour.convert("L" if ";" in mode else mode).convert(mode), kind))
    exif = Image.Exif()
    exif[274] = 6
    seeds += [_picture(colour, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    return seeds


@cache
def masks() -> list[bytes]:
    """Mask files of every kind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.png")
        save_mask(path, MASK)
        seeds = [path.read_bytes()]
        save_davis(path, {3: MASK, 5: ~MASK})
        seeds.append(path.read_bytes())
    grey = Image.fromarray(MASK.astype(np.uint8) * 255)
    deep = Image.fromarray(MASK.astype(np.uint16) * 300)
    smooth = Image.fromarray((np.linspace(0, 1, 192).reshape(12, 16) * 255).astype(np.uint8))
    seeds += [_picture(i, "PNG") for i in (grey, deep, smooth, grey.convert("RGBA"))]
    return [*seeds, _picture(grey, "JPEG"), _picture(grey.convert("F"), "TIFF")]


@cache
def animations() -> list[bytes]:
    images = [Image.fromarray(frame) for frame in _frames()]
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": 80}
    return [_picture(images[0], kind, **options) for kind in ("GIF", "PNG", "WEBP", "TIFF")]


@cache
def videos() -> list[bytes]:
    seeds = []
    kinds = [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")]
    for kind, codec in [*kinds, ("mov", "mjpeg")]:
        stream = io.BytesIO()
        with av.open(stream, "w", format=kind) as container:
            track: Any = container.add_stream(codec, rate=24)
            track.width, track.height = 32, 24
            track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for frame in _frames():
                container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(track.encode(None))
        seeds.append(stream.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "v.mp4")
        with VideoWriter(path, 24, 32) as writer:
            for number, frame in enumerate(_frames()):
                writer.write(frame, number / 10)
        seeds.append(path.read_bytes())
    return seeds


def _json(*documents: Any) -> list[bytes]:
    return [json.dumps(document).encode() for document in documents]


@cache
def rles() -> list[bytes]:
    packed, plain = encode_rle(MASK, text=True), {"size": [2, 3], "counts": [1, 2, 3]}
    return _json(packed, plain, {"size": [0, 4], "counts": [0]}, {"size": [3, 3], "counts": "09"})


@cache
def mask_documents() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.json")
        writer = JsonWriter(path, *MASK.shape)
        writer.write(FrameLabel(0, "00000", 0.5), {1: MASK, 2: ~MASK})
        writer.write(1, {1: MASK})
        writer.close()
        return [path.read_bytes()]


@cache
def annotations() -> list[bytes]:
    """Documents of SA-V and of SA-1B."""
    rle = encode_rle(MASK, text=True)
    size = {"video_height": 12.0, "video_width": 16.0, "video_id": "v"}
    return _json(
        {"masklet": [[rle, None], [rle, rle]], "masklet_id": [1, 2], **size},
        {"image": {"height": 12, "width": 16}, "annotations": [{"segmentation": rle}] * 2},
        {"annotations": [{"segmentation": None}, {"segmentation": rle}]},
    )


@cache
def prompts() -> list[bytes]:
    clicks = {"id": 1, "frame": 0, "points": [[1, 2.5], [3, 4]], "labels": [1, 0]}
    return _json({"objects": [clicks, {"id": 2, "box": [1, 2, 3, 4]}, {"id": 3, "mask": "m.png"}]})


@cache
def recipes() -> list[bytes]:
    source = {"kind": "synthetic", "frames": 2, "batch": 1, "world": {"max_objects": 2}}
    folder = {"kind": "folder", "images": "a", "masks": "b", "augmentation": {"degrees": 3}}
    stages = [{"steps": 3}, {"steps": 2, "image_size": 96, "annotator": {"clicks": 2}}]
    return _json(
        {"model": "tiny", "seed": 1, "lr": 1e-3, "sources": [source], "stages": stages},
        {"model": {"embed_dim": 16}, "weights": "w.pt", "sources": [folder], "losses": {"dice": 2}},
    )


@cache
def runs() -> list[bytes]:
    """Files `run.json`, and rows of finished frames."""
    row = {"frame": 0, "name": "00000", "seconds": None, "objects": [{"id": 1, "area": 3}]}
    header = {"format": "sam2_fast.run", "version": 1, "settings": {"a": [1], "b": None}}
    return _json(header, row, {**row, "seconds": 0.5, "objects": []})


@cache
def tables() -> list[bytes]:
    return [b"video,object,kind\na,1,x\nb,2,y", b'video,kind\na,"x, y"\nb,z']


@cache
def yaml() -> list[bytes]:
    text = (
        "model:\n  _target_: sam2.modeling.sam2_base.SAM2Base\n  image_size: 1024\n  x: [1, 1e-6]\n"
    )
    interpolated = b"a: {x: 1}\nmodel:\n  b: ${a.x}\n  c: [${..b}, 'x ${a}']\n"
    return [text.encode(), b"a: &a [1, 2]\nmodel: {b: *a, c: null}\n", interpolated]


def lines(texts: tuple[str, ...]) -> list[bytes]:
    return [text.encode() for text in texts]
