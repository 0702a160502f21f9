"""Every op once with the arguments that the real model gives it: error against float32, over
torch's own error.

Arguments are recorded while the pipeline runs on the reference implementations. Integers must match
exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_light.context import Context
from sam2_fast.ops import registry

FLOATS = (
    "hiera_block",
    "mask_decoder",
    "memory_attention",
    "memory_encoder",
    "rope_attention",
    "window_attention",
)
"""Ops whose results are rounded; those of all others are compared bit by bit."""
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def run(context: Context) -> None:
    """Entry point."""
    candidates = {"cuda": ("cuda", "triton"), "fake": ("triton",), "cpu": ("cpu",)}[context.mode]
    for name, (op, args, options) in _calls(context).items():
        for backend in candidates:
            implementation = registry._implementations.get((op, backend))
            if implementation is not None:
                label = f"{name} {backend}"
                context.attempt(
                    label, lambda i=implementation, a=args, o=options: _compare(context, i, a, o)
                )
        if op in FLOATS and context.mode != "cpu":
            halves = cast(args, torch.float16)
            implementation = registry._implementations[op, "triton"]
            label = f"{name} triton float16"
            context.attempt(
                label, lambda i=implementation, a=halves, o=options: _compare(context, i, a, o)
            )


def _calls(context: Context) -> dict[str, Call]:
    """Each op with each shape of its first tensor, from a picture, a click, automatic masks and
    tracked frames."""
    from sam2_fast.build_sam import build_sam2_video_predictor
    from sam2_fast.image_predictor import SAM2ImagePredictor
    from sam2_fast.io.video import open_video
    from sam2_fast.mask_generator import SAM2AutomaticMaskGenerator

    calls: dict[str, Call] = {}
    for name in context.models:
        model = build_sam2_video_predictor(
            name, device=context.device, dtype=context.dtype, seed=0, image_size=context.size
        )
        model.graphs = None
        enliven(model)
        frames = open_video(str(context.frames()))
        with _recorded(calls, name, "triton" if context.mode == "fake" else "torch"):
            images = SAM2ImagePredictor(model)
            images.graphs = None
            images.set_image(np.asarray(frames[0]))
            if name != "tiny":  # the other parts are those of the tiny model
                continue
            images.predict(point_coords=np.array([[300.0, 200.0]]), point_labels=np.array([1]))
            options = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
            generator = SAM2AutomaticMaskGenerator(
                model, box_nms_thresh=0.9, min_mask_region_area=20, **options
            )
            generator.predictor.graphs = None
            generator.generate(np.asarray(frames[0]))
            state = model.init_state(str(context.frames()))
            for i in range(2):
                model.add_new_points_or_box(
                    state, 0, i, points=[[100.0 + 150 * i, 150.0]], labels=[1]
                )
            for _ in model.propagate_in_video(
                state, max_frame_num_to_track=8 if context.cuda else 2
            ):
                pass
    return calls


@contextmanager
def _recorded(calls: dict[str, Call], model: str, source: str) -> Iterator[None]:
    """Every op runs in the backend `source`, and its arguments are kept."""
    for stem in registry.STEMS:
        import_module(f"sam2_fast.ops.{stem}")
    implementations, absent = dict(registry._implementations), dict(registry._absent)
    try:
        for op, backend in implementations:
            if backend == source or (backend == "torch" and (op, source) not in implementations):
                kept = registry.Implementation(
                    op, backend, _keeping(calls, model, op, backend), lambda *_: None
                )
                registry._implementations[op, backend] = kept
            else:
                registry._absent[op, backend] = lambda: "left out while arguments are recorded"
        yield
    finally:
        registry._implementations.update(implementations)
        registry._absent.update(absent)


def _keeping(calls: dict[str, Call], model: str, op: str, backend: str) -> Callable[..., Any]:
    plain = registry._implementations[op, backend].run

    def run(*args: Any, **options: Any) -> Any:
        first = next(x for x in args if isinstance(x, Tensor))
        # the latest call, since later frames attend to more memories
        calls[f"{model} {op} {'x'.join(map(str, first.shape))}"] = (op, args, options)
        return plain(*args, **options)

    return run


def _compare(
    context: Context,
    implementation: registry.Implementation,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> dict[str, Any]:
    """rms error over the error of torch in the same dtype; `equal` for integers. seconds: with
    compilation."""
    reason = registry._absent[
        implementation.op, implementation.backend
    ]() or implementation.refuses(*args)
    if reason is not None:
        return {"status": f"refuses: {reason}"[:200]}
    start = time.perf_counter()
    result = implementation.run(*args, **options)
    context.synchronize()
    first = round(time.perf_counter() - start, 2)
    if context.mode == "fake":
        return {"first_call_s": first, "status": "compiled, not computed"}
    reference = registry._implementations[implementation.op, "torch"].run
    if implementation.op not in FLOATS:
        equal = all(
            _equal(a, b)
            for a, b in zip(_flat(result), _flat(reference(*args, **options)), strict=True)
        )
        return {
            "first_call_s": first,
            "equal": equal,
            "status": "ok" if equal else "WRONG: differs",
        }
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = _tensors(
            reference(*cast(args, torch.float32 if context.cuda else torch.float64), **options)
        )
    ours, torchs = _tensors(result), _tensors(reference(*args, **options))
    errors = [
        (_rms(a, e), _rms(b, e), _rms(e.to(a.dtype), e))
        for a, b, e in zip(ours, torchs, exact, strict=True)
    ]
    worst = max(a / max(b, c, 1e-30) for a, b, c in errors)
    finite = all(bool(x.isfinite().all()) for x in ours)
    good = finite and worst <= 2
    return {
        "first_call_s": first,
        "over_torch": worst,
        "rms": [e[0] for e in errors],
        "torch_rms": [e[1] for e in errors],
        "status": "ok" if good else "WRONG: error above twice torch's",
    }


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with every floating-point tensor in it in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        parts = [cast(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def enliven(model: Any) -> None:
    """Noise in parameters that begin as constants, so that a part that is left out changes the
    result."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.float().std() < 1e-5:
                parameter.add_(
                    (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter)
                )


def _flat(value: Any) -> list[Any]:
    return [y for x in value for y in _flat(x)] if isinstance(value, list | tuple) else [value]


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in _flat(value) if isinstance(x, Tensor)]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def _rms(x: Tensor, exact: Tensor) -> float:
    return (x.double() - exact.double()).square().mean().sqrt().item()
