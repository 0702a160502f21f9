"""Masks of eight frames against those of a CPU in float32: torch alone, kernels, CUDA graphs,
changed weights, a stream of the caller's. Recorded work must equal the same kernels launched one by
one, bit by bit."""

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
"""Of the pixels of a mask every second row and column are compared."""
CLICKS = ([[150.0, 160.0]], [[320.0, 120.0]])


def build(name: str, device: torch.device, dtype: torch.dtype, size: int) -> Any:
    """A video predictor with seeded random weights, every part of which matters and finds every
    object present."""
    from sam2_fast.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(name, device="cpu", seed=0, image_size=size)
    predictor.fill_hole_area = 0
    perturb_constants(predictor)
    # random weights find most objects absent, whose masks are a constant: nothing would be compared
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
    """Entry point."""
    for name in context.models:
        context.attempt(f"{name} golden", lambda n=name: _variants(context, n))


def _variants(context: Context, name: str) -> dict[str, Any]:
    """Each variant is a record of its own, as soon as it is known."""
    folder, count = str(context.frames()), context.golden_frames
    predictor = build(name, context.device, context.dtype, context.size)
    graphs, golden = predictor.graphs, _golden(context, name)
    found: dict[str, Tensor] = {}

    def variant(label: str, around: AbstractContextManager[Any], again: bool = False) -> None:
        def judged() -> dict[str, Any]:
            with around:
                found[label] = masks(predictor, folder, count)
            return _judge(found[label], golden, found.get("torch"), context)

        context.attempt(f"{name} {label}", judged, again)

    predictor.graphs = None
    if context.mode != "fake":
        variant("torch", single_backend("torch"), again=True)
    variant("kernels", nullcontext(), again=True)
    predictor.graphs = graphs
    variant("graphs", nullcontext())
    context.attempt(f"{name} changed weights", lambda: _changed(predictor, folder, count, found))
    variant("graphs again", nullcontext())
    variant("own stream", _own_stream(context))
    plain = found.get("kernels")
    recorded = [label for label in ("graphs", "graphs again", "own stream") if label in found]
    same = {x: plain is not None and torch.equal(found[x], plain) for x in recorded}
    wrong = [label for label, equal in same.items() if not equal and context.mode != "fake"]
    status = f"WRONG: {', '.join(wrong)} differ from kernels" if wrong else "ok"
    return {"recordings": None if graphs is None else len(graphs), **same, "status": status}


def _changed(predictor: Any, folder: str, count: int, found: dict[str, Tensor]) -> dict[str, Any]:
    """Other weights give other masks, from graphs that were captured before; then they are back."""
    before = [p.detach().clone() for p in predictor.parameters()]
    try:
        for parameter in predictor.parameters():
            parameter.mul_(1.01)
        changed = masks(predictor, folder, count)
    finally:
        for parameter, value in zip(predictor.parameters(), before, strict=True):
            parameter.copy_(value)
    known = found.get("graphs")
    return {"weights_matter": known is None or not torch.equal(changed, known)}


def _golden(context: Context, name: str) -> Tensor | None:
    """The carried masks; without them, on a CPU, the same in float64; None where nothing is
    computed."""
    path = context.carried / "golden.npz" if context.carried is not None else None
    if path is not None and context.mode == "cuda":
        return torch.from_numpy(np.load(path)[name].astype(np.float32))
    if context.mode != "cpu":
        return None
    exact = build(name, context.device, torch.float64, context.size)
    exact.graphs = None
    return masks(exact, str(context.frames()), context.golden_frames)


def _judge(
    logits: Tensor, golden: Tensor | None, torchs: Tensor | None, context: Context
) -> dict[str, Any]:
    """rms error, the least IoU of a mask, and the error over that of torch in the same dtype."""
    if golden is None:
        return {"frames": len(logits)}
    on, wanted = (x.flatten(2) > 0 for x in (logits, golden))
    iou = ((on & wanted).sum(2) + 1e-9) / ((on | wanted).sum(2) + 1e-9)
    error = rms_error(logits, golden.double())
    torch_error = None if torchs is None else rms_error(torchs, golden.double())
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
    """Work inside is enqueued on a stream that is not the default one."""
    if not context.cuda:
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
