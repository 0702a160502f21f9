"""Every op once with the arguments that the real model gives it: error against float32, over
torch's own error.

Arguments are recorded while the pipeline runs on the reference implementations. Integers must match
exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.first_light.context import Context
from benchmarks.timing import rms_error
from sam2_fast.ops import registry

FLOATS = (
    "hiera_block",
    "mask_decoder",
    "memory_attention",
    "memory_encoder",
    "object_heads",
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
    """Each op with each shape of its first tensor, from a picture, and for the tiny model also from
    a click, automatic masks and tracked frames."""
    calls: dict[str, Call] = {}
    for name in context.models:
        run_ = partial(_run_pipeline, context, name, calls)
        context.attempt(f"{name} arguments", run_, again=True)
    return calls


def _run_pipeline(context: Context, name: str, calls: dict[str, Call]) -> None:
    from sam2_fast.build_sam import build_sam2_video_predictor
    from sam2_fast.image_predictor import SAM2ImagePredictor
    from sam2_fast.io.video import open_video
    from sam2_fast.mask_generator import SAM2AutomaticMaskGenerator

    folder = str(context.frames())
    picture = np.asarray(open_video(folder)[0])
    model = build_sam2_video_predictor(
        name, device=context.device, dtype=context.dtype, seed=0, image_size=context.size
    )
    model.graphs = None
    enliven(model)
    with _recorded(calls, name, "triton" if context.mode == "fake" else "torch"):
        images = SAM2ImagePredictor(model)
        images.graphs = None
        images.set_image(picture)
        if name != "tiny":  # the other parts are those of the tiny model
            return
        images.predict(point_coords=np.array([[300.0, 200.0]]), point_labels=np.array([1]))
        options = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
        generator = SAM2AutomaticMaskGenerator(
            model, box_nms_thresh=0.9, min_mask_region_area=20, **options
        )
        generator.predictor.graphs = None
        generator.generate(picture)
        state = model.init_state(folder)
        for i in range(2):
            click = [[100.0 + 150 * i, 150.0]]
            model.add_new_points_or_box(state, 0, i, points=click, labels=[1])
        last = 8 if context.cuda else 2
        for _ in model.propagate_in_video(state, max_frame_num_to_track=last):
            pass


@contextmanager
def only(source: str) -> Iterator[None]:
    """Every op runs in the backend `source`, or in torch where it has no such implementation."""
    for stem in registry.STEMS:
        import_module(f"sam2_fast.ops.{stem}")
    absent = dict(registry._absent)
    try:
        for op, backend in absent:
            if not _is_source(op, backend, source):
                registry._absent[op, backend] = lambda: "left out"
        yield
    finally:
        registry._absent.update(absent)


def _is_source(op: str, backend: str, source: str) -> bool:
    missing = (op, source) not in registry._implementations
    return backend == source or (backend == "torch" and missing)


@contextmanager
def _recorded(calls: dict[str, Call], model: str, source: str) -> Iterator[None]:
    """As `only`, and the arguments of every op are kept."""
    with only(source):
        implementations = dict(registry._implementations)
        try:
            for (op, backend), plain in implementations.items():
                if _is_source(op, backend, source):
                    run_ = _keeping(calls, model, op, plain.run)
                    kept = registry.Implementation(op, backend, run_, lambda *_: None)
                    registry._implementations[op, backend] = kept
            yield
        finally:
            registry._implementations.update(implementations)


def _keeping(
    calls: dict[str, Call], model: str, op: str, plain: Callable[..., Any]
) -> Callable[..., Any]:
    def run_(*args: Any, **options: Any) -> Any:
        first = next(x for x in args if isinstance(x, Tensor))
        # the latest call, since later frames attend to more memories
        calls[f"{model} {op} {'x'.join(map(str, first.shape))}"] = (op, args, options)
        return plain(*args, **options)

    return run_


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
        pairs = zip(tree_leaves(result), tree_leaves(reference(*args, **options)), strict=True)
        equal = all(_equal(a, b) for a, b in pairs)
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
        tuple(rms_error(x, e.double()) for x in (a, b, e.to(a.dtype)))
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
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, value)


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


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
