"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sam2_fast.io.limits import MAX_FRAMES, MAX_PIXELS
from sam2_fast.io.mask_png import MAX_IDS


class Size(str, Enum):
    """Model sizes: our own model nano, and the released sizes."""

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
    """Mask files: PNG per object, PNG with the DAVIS palette, or JSON with COCO run lengths."""

    png = "png"
    davis = "davis"
    coco_rle = "coco-rle"


class VideoFormat(str, Enum):
    """Formats of the video with the masks drawn on it."""

    mp4 = "mp4"
    webp = "webp"


Points = Annotated[
    list[str],
    typer.Option(
        "--point",
        metavar="X,Y[,LABEL]",
        help="A click in pixels; label 1 (default): object, 0: background. Repeatable.",
    ),
]
Boxes = Annotated[
    list[str],
    typer.Option(
        "--box",
        metavar="X0,Y0,X1,Y1",
        help="A box in pixels. Repeatable without points: each box is an object.",
    ),
]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        "--mask", metavar="FILE", help="A mask image: pixels that are not black are the object."
    ),
]
Objects = Annotated[
    list[str],
    typer.Option(
        "--object",
        metavar="ID:KEY=VALUE:...",
        help="Prompts of one object of several, for example "
        "2:frame=10:point=210,350:point=50,60,0:box=9,9,90,90, or 3:frame=5:mask=FILE (mask "
        "last). Repeatable.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="A JSON file with prompts of several objects and frames; see docs/cli.md.",
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
        help="Model size. Default: read from --weights, else tiny, or nano if its official "
        "weights cannot be downloaded.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        help="Side of the model's input, a multiple of 32. Default: 1024; for nano 256.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1... Default: cuda if available, else cpu."),
]
NumberFormat = Annotated[
    Dtype, typer.Option("--dtype", help="Number format of weights and computation.")
]
MaskFormat = Annotated[Format, typer.Option("--format", help="Format of the mask files.")]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Number of videos to process in parallel.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Directory to write to. Default: <input name>_sam2 in the current directory.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the results of an earlier run; other files stay."),
]
Overlay = Annotated[
    bool,
    typer.Option("--overlay/--no-overlay", help="Also write the input with the masks drawn on it."),
]
OverlayFormat = Annotated[
    VideoFormat,
    typer.Option("--overlay-format", help="Format of the overlay: a video or an animated WebP."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")
]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Show a progress bar on stderr. Default: only if stderr is a terminal.",
    ),
]
PixelLimit = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Refuse images and frames of more pixels.")
]

DEFAULT_PIXELS = MAX_PIXELS
DEFAULT_FRAMES = MAX_FRAMES


def output_directory(output: Path | None, source: Path) -> Path:
    """The directory to write to. Raises ValueError if the path exists and is not a directory."""
    chosen = output or Path(f"{source.resolve().stem}_sam2")
    if chosen.exists() and not chosen.is_dir():
        raise ValueError(f"--output {chosen}: expected a directory, got a file")
    return chosen


def check_davis_ids(kind: Format, object_ids: Iterable[int]) -> None:
    """Raise ValueError if a format cannot hold these object ids."""
    if kind is Format.davis and any(not 1 <= number <= MAX_IDS for number in object_ids):
        raise ValueError(
            f"--format davis: object ids must be 1 to {MAX_IDS}; use --format png or coco-rle"
        )


def model_options(device: str | None, dtype: Dtype, image_size: int | None) -> dict[str, Any]:
    """Keyword arguments for the model builders, after checking them."""
    if image_size is not None and (image_size <= 0 or image_size % 32):
        raise ValueError(
            f"--image-size: expected a positive multiple of 32 pixels, got {image_size}"
        )
    return {
        "device": chosen_device(device),
        "dtype": getattr(torch, dtype.value),
        "image_size": image_size,
    }


def chosen_device(name: str | None) -> torch.device | None:
    """The device of --device. Raises ValueError unless this machine has it."""
    if name is None:
        return None
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: expected cpu, cuda, or cuda:N") from error
    _check_device(device, f"--device {name}")
    return device


def _check_device(device: torch.device, label: str) -> None:
    """Raise ValueError, with the devices there are, unless torch can compute on a device."""
    module = getattr(torch, device.type, None)
    is_accelerator = device.type not in ("cpu", "meta") and hasattr(module, "device_count")
    count = module.device_count() if module is not None and is_accelerator else 0
    if device.type == "cpu":
        count = 1
    if (device.index or 0) < count:
        return
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    available = ["cpu"]
    if accelerator is not None:
        available += [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    raise ValueError(
        f"{label}: this machine has {torch.cuda.device_count()} CUDA devices and torch "
        f"{torch.__version__}; use one of {', '.join(available)}"
    )
