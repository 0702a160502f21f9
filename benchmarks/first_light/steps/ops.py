"""Every op once with arguments from the real model: its error over torch's own.

The arguments are recorded while the pipeline runs on the reference implementations. Integer
results must match exactly.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.first_light.context import Context
from sam2_fast.doctor.calls import encode_image, observed_calls, perturb_constants, run_pipeline
from sam2_fast.ops.core import registry
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.ops.core.requirements import Request
from sam2_fast.proving.case import Case
from sam2_fast.proving.errors import cast
from sam2_fast.proving.rules import Call, rule_of, tensors_in


def run(context: Context) -> None:
    """Run the step."""
    candidates = {"cuda": ("cuda", "triton"), "fake": ("triton",), "cpu": ("cpu",)}[context.mode]
    known = registry.all_implementations()
    for name, (op, call) in _calls(context).items():
        for backend in candidates:
            if (op, backend) in known:
                compare = partial(_compare, context, known[op, backend], call)
                context.attempt(f"{name} {backend}", compare)
        if context.mode != "cpu" and (op, "triton") in known and _has_bfloat16(call):
            float16_call = Call(cast(call.arguments, torch.float16), call.named)
            compare = partial(_compare, context, known[op, "triton"], float16_call)
            context.attempt(f"{name} triton float16", compare)


def _has_bfloat16(call: Call) -> bool:
    """Whether an argument is bfloat16. Such calls are also compared in float16."""
    return any(x.dtype == torch.bfloat16 for x in tensors_in(call.arguments))


def _calls(context: Context) -> dict[str, tuple[str, Call]]:
    """Name -> op and call, for each op with each shape of its first tensor.

    The calls are those of encoding a picture, and for the tiny model also those of a click,
    automatic masks and tracked frames.
    """
    calls: dict[str, tuple[str, Call]] = {}
    for name in context.models:
        record_calls = partial(_run_pipeline, context, name, calls)
        context.attempt(f"{name} arguments", record_calls, again=True)
    return calls


def _run_pipeline(context: Context, name: str, calls: dict[str, tuple[str, Call]]) -> None:
    from sam2_fast.build_sam import build_sam2_video_predictor
    from sam2_fast.io.video import open_video

    folder = str(context.frames())
    picture = np.asarray(open_video(folder)[0])
    model = build_sam2_video_predictor(
        name, device=context.device, dtype=context.dtype, seed=0, image_size=context.size
    )
    perturb_constants(model)

    def keep(op: str, call: Call) -> None:
        first = next(x for x in call.arguments if isinstance(x, Tensor))
        # A later call replaces an earlier one, since later frames attend to more memories.
        calls[f"{name} {op} {'x'.join(map(str, first.shape))}"] = op, call

    with observed_calls(keep, "triton" if context.mode == "fake" else "torch"):
        if name == "tiny":
            run_pipeline(model, picture, folder, 8 if context.cuda else 2)
        else:  # the other parts are the same as in the tiny model
            encode_image(model, picture)


def _compare(context: Context, implementation: Implementation, call: Call) -> dict[str, Any]:
    """Check one call by the rule of `sam2_fast.proving`.

    In the result, `first_call_s` includes compilation.
    """
    op, backend = implementation.op, implementation.backend
    reason = registry.absence(op, backend) or implementation.refuses(Request(call.arguments))
    if reason is not None:
        return {"status": f"refuses: {reason}"[:200]}
    start = time.perf_counter()
    implementation.run(*call.arguments, **call.named)
    context.synchronize()
    first = round(time.perf_counter() - start, 2)
    if context.mode == "fake":
        return {"first_call_s": first, "status": "compiled, not computed"}
    reference = registry.all_implementations()[op, "torch"].run
    wrong, error = Case(reference, rule_of(op), call).check(implementation.run)
    status = "ok" if wrong is None else f"WRONG: {wrong}"
    return {"first_call_s": first, "over_torch": error, "status": status}
