"""The options that commands share, each described once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS


class Size(str, Enum):
    """Our own model, and the released sizes."""

    nano = "nano"
    tiny = "tiny"
    small = "small"
    base_plus = "base_plus"
    large = "large"


class Dtype(str, Enum):
    """Number formats of the weights and the computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Format(str, Enum):
    """Mask files: one PNG per object; one PNG with the DAVIS palette; JSON
    with COCO run lengths.
    """

    png = "png"
    davis = "davis"
    coco_rle = "coco-rle"


Points = Annotated[
    list[str],
    typer.Option(
        "--point",
        metavar="X,Y[,LABEL]",
        help="A click; label 1 object (default), 0 background. Repeatable.",
    ),
]
Boxes = Annotated[
    list[str],
    typer.Option(
        "--box", metavar="X0,Y0,X1,Y1", help="A box. Several boxes without points: an object each."
    ),
]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        "--mask", metavar="FILE", help="A mask image: whatever is not black is the object."
    ),
]
Objects = Annotated[
    list[str],
    typer.Option(
        "--object",
        metavar="ID:KEY=VALUE:...",
        help="One object of several, such as "
        "2:frame=10:point=210,350:point=50,60,0:box=9,9,90,90:mask=FILE (mask last). "
        "Repeatable.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts of several objects and frames as JSON; see docs/cli.md.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="PATH|HUB_ID",
        help="A .pt or .safetensors file, a Hub id, or nano. Default: official weights from the "
        "cache or the Hub, else nano.",
    ),
]
ModelSize = Annotated[
    Size | None,
    typer.Option(
        "--size",
        help="Model size. Default: read from --weights, else tiny, or nano where there is no "
        "network.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Side of the model's input, a multiple of 32. Default 1024, of nano 256.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1... Default: CUDA where there is one."),
]
NumberFormat = Annotated[Dtype, typer.Option("--dtype", help="Number format.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Where files go. Default: <input name>_sam2 here."
    ),
]
Overlay = Annotated[
    bool, typer.Option("--overlay/--no-overlay", help="Also draw the masks over the picture.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout in place of text.")
]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress", help="Progress bar on stderr. Default: on a terminal."
    ),
]
PixelLimit = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Refuse larger images and frames.")
]

DEFAULT_PIXELS = MAX_PIXELS
DEFAULT_FRAMES = MAX_FRAMES


def output_directory(output: Path | None, source: Path) -> Path:
    """Where files go; ValueError if something that is no directory is there."""
    chosen = output or Path(f"{source.resolve().stem}_sam2")
    if chosen.exists() and not chosen.is_dir():
        raise ValueError(f"--output {chosen}: is a file, expected a directory")
    return chosen


def model_options(device: str | None, dtype: Dtype, image_size: int | None) -> dict[str, Any]:
    """Checked keyword arguments of the builders."""
    if image_size is not None and (image_size <= 0 or image_size % 32):
        raise ValueError(
            f"--image-size: expected a positive multiple of 32 pixels, got {image_size}"
        )
    return {
        "device": _device(device),
        "dtype": getattr(torch, dtype.value),
        "image_size": image_size,
    }


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected cpu, cuda, or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices (torch "
            f"{torch.__version__})"
        )
    return device
