"""The image encoder by model size and precision, and one click on an encoded image, on a CPU.

Peers are the official package and inference engines.
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
    """The official encoder with the decoder's projections of its features.

    Inputs and outputs are plain tensors, so that inference engines can convert the module.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps, the coarsest first. image: [1, 3, S, S]."""
        output = self.model.forward_image(image)
        return output["vision_features"], output["backbone_fpn"][1], output["backbone_fpn"][0]


class Click(nn.Module):
    """Three masks for one click on encoded features, by the official decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, low: Tensor, mid: Tensor, high: Tensor, coords: Tensor) -> Tensor:
        """Logits [1, 3, S / 4, S / 4]. coords: [1, 1, 2] pixels."""
        labels = torch.ones(1, 1, dtype=torch.int32)
        sparse, dense = self.model.sam_prompt_encoder(
            points=(coords, labels), boxes=None, masks=None
        )
        position = self.model.sam_prompt_encoder.get_dense_pe()
        logits: Tensor = self.model.sam_mask_decoder(
            low, position, sparse, dense, True, False, [high, mid]
        )[0]
        return logits


def compare(
    case: str, functions: Functions, exact: Tensor, options: Options, flop: float | None
) -> Iterator[Row]:
    """Check errors against `exact`, then time all functions.

    The error of this library is at most twice that of the official package in the same precision.
    """
    error = {
        name: (f().double() - exact.double()).square().mean().sqrt().item()
        for name, f in functions.items()
    }
    for precision in ("", " bfloat16"):
        ours = f"sam2_fast{precision}"
        official_error = error.get(f"official{precision}", 0.0)
        if ours in error and official_error > 0:
            require(error[ours] <= 2 * official_error, case, ours)
    peaks = {
        "": matrix_peak(options.device),
        " bfloat16": matrix_peak(options.device, torch.bfloat16),
    }
    times = interleaved(functions, options)
    our_median = statistics.median(times["sam2_fast"])
    notes = {}
    for name, t in times.items():
        median = statistics.median(t)
        peak = peaks[" bfloat16" if name.endswith("bfloat16") else ""]
        share = {"% of matrix peak": 100 * flop / median * 1e3 / peak} if flop else {}
        notes[name] = {"x ours float32": median / our_median, "rms error": error[name], **share}
    yield from rows(case, times, notes)


def measure(options: Options) -> Iterator[Case]:
    """Every model size; the smallest also in inference engines."""
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
    """The image encoder; of the smallest model also in inference engines."""
    image = picture(size)
    ours = build_sam2(name, device="cpu", seed=0, image_size=size)
    official = peers.official(name, ours.state_dict(), size, options.device)
    encode = lambda m=ours: m.encode_image(image).low  # noqa: E731
    functions: Functions = {"sam2_fast": encode, "sam2_fast bfloat16": autocast(encode)}
    exact = ours.double().encode_image(image.double()).low
    ours.float()
    if official is not None:
        run_official = lambda: official.forward_image(image)["vision_features"]  # noqa: E731
        functions |= {"official": run_official, "official bfloat16": autocast(run_official)}
        if name == SIZES[0]:
            with tempfile.TemporaryDirectory() as folder:
                functions |= engines.all_of(
                    Encoder(official).eval(), (image,), Path(folder) / "encoder.onnx"
                )
    work = GFLOP["image encoder"]
    flop = work[name] if isinstance(work, dict) and not options.quick else None
    yield from compare(case, functions, exact, options, flop)


@torch.inference_mode()
def click(case: str, name: str, size: int, options: Options) -> Iterator[Row]:
    """One click to three masks on an encoded image."""
    ours = build_sam2(name, device="cpu", seed=0, image_size=size)
    official = peers.official(name, ours.state_dict(), size, options.device)
    features = ours.encode_image(picture(size))
    coords = torch.full((1, 1, 2), 100.0)
    points = Points(coords, torch.ones(1, 1, dtype=torch.int32))
    decode = lambda: ours.decode(features.low, features, points, None, True).logits  # noqa: E731
    functions: Functions = {"sam2_fast": decode, "sam2_fast bfloat16": autocast(decode)}
    exact_features = Features(*(x.double() for x in features))
    exact = ours.double().decode(exact_features.low, exact_features, points, None, True).logits
    ours.float()
    if official is not None:
        module = Click(official).eval()
        inputs = tuple(x.contiguous() for x in (features.low, features.mid, features.high, coords))
        functions |= {
            "official": lambda: module(*inputs),
            "official bfloat16": autocast(lambda: module(*inputs)),
        }
        with tempfile.TemporaryDirectory() as folder:
            functions |= engines.all_of(
                module, inputs, Path(folder) / "decoder.onnx", quantised=False
            )
    yield from compare(case, functions, exact, options, None)
