"""The image encoder on a CPU by size and precision, and one click on an encoded image: the official
package and inference engines.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import engines, peers
from benchmarks.predictors import GFLOP, autocast
from benchmarks.timing import Case, Options, Row, interleaved, matrix_peak, require, rows
from sam2_fast.build_sam import build_sam2
from sam2_fast.types import Features, Points

SIZES = ("tiny", "small", "base_plus", "large")
Functions = dict[str, Callable[[], Tensor]]


class Encoder(nn.Module):
    """The official encoder with the decoder's projections, as a module of tensors: what engines
    convert.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image: [1, 3, S, S] -> the coarsest level first."""
        found = self.model.forward_image(image)
        return found["vision_features"], found["backbone_fpn"][1], found["backbone_fpn"][0]


class Click(nn.Module):
    """Three masks of one click on encoded features, by the official decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, low: Tensor, mid: Tensor, high: Tensor, place: Tensor) -> Tensor:
        """place: [1, 1, 2] pixels -> logits [1, 3, S / 4, S / 4]."""
        labels = torch.ones(1, 1, dtype=torch.int32)
        sparse, dense = self.model.sam_prompt_encoder(
            points=(place, labels), boxes=None, masks=None
        )
        position = self.model.sam_prompt_encoder.get_dense_pe()
        found: Tensor = self.model.sam_mask_decoder(
            low, position, sparse, dense, True, False, [high, mid]
        )[0]
        return found


def compare(
    case: str, functions: Functions, exact: Tensor, options: Options, flop: float | None
) -> Iterator[Row]:
    """Errors against `exact`, then times; ours may not err more than twice what the official code
    of the same precision does.
    """
    error = {
        who: (f().double() - exact.double()).square().mean().sqrt().item()
        for who, f in functions.items()
    }
    for kind in ("", " bfloat16"):
        mine, theirs = f"sam2_fast{kind}", f"official{kind}"
        if mine in error and theirs in error and error[theirs] > 0:
            require(error[mine] <= 2 * error[theirs], case, mine)
    peaks = {
        "": matrix_peak(options.device),
        " bfloat16": matrix_peak(options.device, torch.bfloat16),
    }
    times = interleaved(functions, options)
    ours = statistics.median(times["sam2_fast"])
    notes = {}
    for who, t in times.items():
        median = statistics.median(t)
        peak = peaks[" bfloat16" if who.endswith("bfloat16") else ""]
        share = {"% of matrix peak": 100 * flop / median * 1e3 / peak} if flop else {}
        notes[who] = {"x ours float32": median / ours, "rms error": error[who], **share}
    yield from rows(case, times, notes)


def measure(options: Options) -> Iterator[Case]:
    """Every size; inference engines on the first."""
    if options.device.type != "cpu":
        return
    size = 256 if options.quick else 1024
    for name in SIZES[: 1 if options.quick else None]:
        yield Case(f"{name} {size}, image encoder", encoding, (name, size, options))
        if name == SIZES[0]:
            yield Case(
                f"{name} {size}, one click on an encoded image", click, (name, size, options)
            )


def picture(size: int) -> Tensor:
    """Random values, [1, 3, size, size]."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def encoding(case: str, name: str, size: int, options: Options) -> Iterator[Row]:
    """The image encoder; for the first size also in inference engines."""
    image = picture(size)
    ours = build_sam2(name, device="cpu", seed=0, image_size=size)
    theirs = peers.official(name, ours.state_dict(), size, options.device)
    encode = lambda m=ours: m.encode_image(image).low  # noqa: E731
    functions: Functions = {"sam2_fast": encode, "sam2_fast bfloat16": autocast(encode)}
    exact = ours.double().encode_image(image.double()).low
    ours.float()
    if theirs is not None:
        official = lambda m=theirs: m.forward_image(image)["vision_features"]  # noqa: E731
        functions |= {"official": official, "official bfloat16": autocast(official)}
        if name == SIZES[0]:
            with tempfile.TemporaryDirectory() as folder:
                functions |= engines.all_of(
                    Encoder(theirs).eval(), (image,), Path(folder) / "encoder.onnx"
                )
    work = GFLOP["image encoder"]
    flop = work[name] if isinstance(work, dict) and not options.quick else None
    yield from compare(case, functions, exact, options, flop)


@torch.inference_mode()
def click(case: str, name: str, size: int, options: Options) -> Iterator[Row]:
    """One click to three masks on an encoded image."""
    ours, image = build_sam2(name, device="cpu", seed=0, image_size=size), picture(size)
    theirs = peers.official(name, ours.state_dict(), size, options.device)
    features, place = ours.encode_image(image), torch.full((1, 1, 2), 100.0)
    points = Points(place, torch.ones(1, 1, dtype=torch.int32))
    decode = lambda: ours.decode(features.low, features, points, None, True).logits  # noqa: E731
    functions: Functions = {"sam2_fast": decode, "sam2_fast bfloat16": autocast(decode)}
    wide = Features(*(x.double() for x in features))
    exact = ours.double().decode(wide.low, wide, points, None, True).logits
    ours.float()
    if theirs is not None:
        module = Click(theirs).eval()
        given = tuple(x.contiguous() for x in (features.low, features.mid, features.high, place))
        functions |= {
            "official": lambda: module(*given),
            "official bfloat16": autocast(lambda: module(*given)),
        }
        with tempfile.TemporaryDirectory() as folder:
            functions |= engines.all_of(
                module, given, Path(folder) / "decoder.onnx", quantised=False
            )
    yield from compare(case, functions, exact, options, None)
