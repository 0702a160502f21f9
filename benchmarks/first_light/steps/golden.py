"""Masks of eight frames against those of a CPU in float32.

Variants are torch alone, kernels, CUDA graphs, changed weights, and another stream than the default
one. The results of CUDA graphs must be bit-exact with those of the same kernels launched one by
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_light.context import Context
from benchmarks.timing import rms_error
from sam2_fast.doctor.calls import perturb_constants, single_backend

STEP = 2
"""Every second row and column of a mask is compared."""
CLICKS = ([[150.0, 160.0]], [[320.0, 120.0]])


def build(name: str, device: torch.device, dtype: torch.dtype, size: int) -> Any:
    """A video predictor with random weights, in which every part affects the masks.

    It predicts that every object is present.
    """
    from sam2_fast.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(name, device="cpu", seed=0, image_size=size)
    predictor.fill_hole_area = 0
    perturb_constants(predictor)
    # With random weights most objects are predicted to be absent. Their masks are constant, so a
    # comparison would show nothing.
    predictor.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(10.0)
    return predictor.to(device=device, dtype=dtype)


def masks(predictor: Any, folder: str, count: int) -> Tensor:
    """Logits [count, objects, H / 2, W / 2] of the first `count` frames, float32 on the CPU."""
    state = predictor.init_state(folder)
    for i, click in enumerate(CLICKS):
        predictor.add_new_points_or_box(state, 0, i, points=click, labels=[1])
    frames = predictor.propagate_in_video(state, max_frame_num_to_track=count - 1)
    return torch.stack([m[:, 0, ::STEP, ::STEP].float().cpu() for _, _, m in frames])


def run(context: Context) -> None:
    """Run the step."""
    for name in context.models:
        context.attempt(f"{name} golden", lambda n=name: _variants(context, n))


def _variants(context: Context, name: str) -> dict[str, Any]:
    """Run all variants and record each as soon as its result is known.

    Returns whether the results of CUDA graphs equal those of the kernels.
    """
    folder = str(context.frames())
    count = context.golden_frames
    predictor = build(name, context.device, context.dtype, context.size)
    graphs = predictor.graphs
    golden = _golden(context, name)
    logits: dict[str, Tensor] = {}

    def variant(label: str, manager: AbstractContextManager[Any], again: bool = False) -> None:
        def run_and_compare() -> dict[str, Any]:
            with manager:
                logits[label] = masks(predictor, folder, count)
            return _compare(logits[label], golden, logits.get("torch"), context)

        context.attempt(f"{name} {label}", run_and_compare, again)

    predictor.graphs = None
    if context.mode != "fake":
        variant("torch", single_backend("torch"), again=True)
    variant("kernels", nullcontext(), again=True)
    predictor.graphs = graphs
    variant("graphs", nullcontext())
    context.attempt(
        f"{name} changed weights",
        lambda: _with_changed_weights(predictor, folder, count, logits.get("graphs")),
    )
    variant("graphs again", nullcontext())
    variant("own stream", _own_stream(context))
    plain = logits.get("kernels")
    labels = [label for label in ("graphs", "graphs again", "own stream") if label in logits]
    equal = {x: plain is not None and torch.equal(logits[x], plain) for x in labels}
    wrong = [label for label in labels if not equal[label] and context.mode != "fake"]
    status = f"WRONG: {', '.join(wrong)} differ from kernels" if wrong else "ok"
    return {"recordings": None if graphs is None else len(graphs), **equal, "status": status}


def _with_changed_weights(
    predictor: Any, folder: str, count: int, original: Tensor | None
) -> dict[str, Any]:
    """Whether existing CUDA graphs return other masks after the weights are changed in place.

    original: masks with the original weights, which are restored before this returns.
    """
    before = [p.detach().clone() for p in predictor.parameters()]
    try:
        for parameter in predictor.parameters():
            parameter.mul_(1.01)
        changed = masks(predictor, folder, count)
    finally:
        for parameter, value in zip(predictor.parameters(), before, strict=True):
            parameter.copy_(value)
    return {"weights_matter": original is None or not torch.equal(changed, original)}


def _golden(context: Context, name: str) -> Tensor | None:
    """The expected masks: those of the pack; on a CPU computed in float64; or None.

    None without a pack, and on the fake GPU, which computes nothing.
    """
    path = context.pack / "golden.npz" if context.pack is not None else None
    if path is not None and context.mode == "cuda":
        return torch.from_numpy(np.load(path)[name].astype(np.float32))
    if context.mode != "cpu":
        return None
    exact = build(name, context.device, torch.float64, context.size)
    exact.graphs = None
    return masks(exact, str(context.frames()), context.golden_frames)


def _compare(
    logits: Tensor, golden: Tensor | None, torch_logits: Tensor | None, context: Context
) -> dict[str, Any]:
    """rms error, IoU of the masks, and the error over that of torch in the same dtype."""
    if golden is None:
        return {"frames": len(logits)}
    actual, expected = (x.flatten(2) > 0 for x in (logits, golden))
    iou = ((actual & expected).sum(2) + 1e-9) / ((actual | expected).sum(2) + 1e-9)
    error = rms_error(logits, golden.double())
    torch_error = None if torch_logits is None else rms_error(torch_logits, golden.double())
    over = None if torch_error is None else error / max(torch_error, 1e-30)
    wrong = not bool(logits.isfinite().all()) or (over is not None and over > 2)
    return {
        "rms": error,
        "over_torch": over,
        "least_iou": iou.min().item(),
        "mean_iou": iou.mean().item(),
        "status": "WRONG: error above twice torch's" if wrong and context.cuda else "ok",
    }


@contextmanager
def _own_stream(context: Context) -> Iterator[None]:
    """A context in which another stream than the default one is current."""
    if not context.cuda:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
