"""Masks of eight frames against those of a CPU in float32: torch alone, kernels, CUDA graphs,
changed weights, a stream of the caller's. Recorded work must equal the same kernels launched one by
one, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_light.context import Context
from benchmarks.first_light.steps.ops import enliven
from sam2_fast.ops import registry

STEP = 2
"""Of the pixels of a mask every second row and column are compared."""
CLICKS = ([[150.0, 160.0]], [[320.0, 120.0]])


def build(name: str, device: torch.device, dtype: torch.dtype, size: int) -> Any:
    """A video predictor with seeded random weights, every part of which matters and finds every
    object present."""
    from sam2_fast.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(name, device="cpu", seed=0, image_size=size)
    predictor.fill_hole_area = 0
    enliven(predictor)
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
    folder, count = str(context.frames()), context.golden_frames
    predictor = build(name, context.device, context.dtype, context.size)
    recordings, predictor.graphs = predictor.graphs, None
    found = {"kernels": masks(predictor, folder, count)}
    if context.mode != "fake":
        with _torch_only():
            found["torch"] = masks(predictor, folder, count)
    golden = _golden(context, name)
    predictor.graphs = recordings
    found["graphs"] = masks(predictor, folder, count)
    before = {n: p.detach().clone() for n, p in predictor.named_parameters()}
    for parameter in predictor.parameters():
        parameter.mul_(1.01)
    changed = masks(predictor, folder, count)
    for n, parameter in predictor.named_parameters():
        parameter.copy_(before[n])
    found["graphs again"] = masks(predictor, folder, count)
    found["own stream"] = _on_a_stream(context, lambda: masks(predictor, folder, count))
    for variant, logits in found.items():
        context.record(f"{name} {variant}", **_judge(logits, golden, found.get("torch"), context))
    same = {
        v: bool(torch.equal(found[v], found["kernels"]))
        for v in ("graphs", "graphs again", "own stream")
    }
    wrong = [v for v, equal in same.items() if not equal]
    status = (
        f"WRONG: {', '.join(wrong)} differ from kernels"
        if wrong and context.mode != "fake"
        else "ok"
    )
    held = None if recordings is None else len(recordings)
    return {
        "recordings": held,
        "weights_matter": not torch.equal(changed, found["graphs"]),
        **same,
        "status": status,
    }


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
    if golden is None or torchs is None:
        return {"frames": len(logits)}
    error, torch_error = ((x - golden).square().mean().sqrt().item() for x in (logits, torchs))
    on, wanted = (x.flatten(2) > 0 for x in (logits, golden))
    iou = ((on & wanted).sum(2) + 1e-9) / ((on | wanted).sum(2) + 1e-9)
    over = error / max(torch_error, 1e-30)
    wrong = context.cuda and (not bool(logits.isfinite().all()) or over > 2)
    return {
        "rms": error,
        "over_torch": over,
        "least_iou": iou.min().item(),
        "mean_iou": iou.mean().item(),
        "status": "WRONG: error above twice torch's" if wrong else "ok",
    }


def _on_a_stream(context: Context, function: Any) -> Tensor:
    if not context.cuda:
        return function()  # type: ignore[no-any-return]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result: Tensor = function()
    stream.synchronize()
    return result


@contextmanager
def _torch_only() -> Iterator[None]:
    """Every op runs its reference."""
    absent = dict(registry._absent)
    try:
        for op, backend in absent:
            if backend != "torch":
                registry._absent[op, backend] = lambda: "left out"
        yield
    finally:
        registry._absent.update(absent)
