"""Every op once with the arguments that the real model gives it: its error over torch's own.

Arguments are kept while the pipeline runs on the reference implementations. Integers must match
exactly.
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
    """Entry point."""
    candidates = {"cuda": ("cuda", "triton"), "fake": ("triton",), "cpu": ("cpu",)}[context.mode]
    known = registry.all_implementations()
    for name, (op, call) in _calls(context).items():
        for backend in candidates:
            if (op, backend) in known:
                compare = partial(_compare, context, known[op, backend], call)
                context.attempt(f"{name} {backend}", compare)
        if context.mode != "cpu" and (op, "triton") in known and _is_narrow(call):
            halves = Call(cast(call.arguments, torch.float16), call.named)
            compare = partial(_compare, context, known[op, "triton"], halves)
            context.attempt(f"{name} triton float16", compare)


def _is_narrow(call: Call) -> bool:
    """Whether it gives the op numbers in bfloat16: such ops are compared in float16, too."""
    return any(x.dtype == torch.bfloat16 for x in tensors_in(call.arguments))


def _calls(context: Context) -> dict[str, tuple[str, Call]]:
    """Each op with each shape of its first tensor, from a picture, and for the tiny model also from
    a click, automatic masks and tracked frames."""
    calls: dict[str, tuple[str, Call]] = {}
    for name in context.models:
        run_ = partial(_run_pipeline, context, name, calls)
        context.attempt(f"{name} arguments", run_, again=True)
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
        # the latest call, since later frames attend to more memories
        calls[f"{name} {op} {'x'.join(map(str, first.shape))}"] = op, call

    with observed_calls(keep, "triton" if context.mode == "fake" else "torch"):
        if name == "tiny":
            run_pipeline(model, picture, folder, 8 if context.cuda else 2)
        else:  # the other parts are those of the tiny model
            encode_image(model, picture)


def _compare(context: Context, implementation: Implementation, call: Call) -> dict[str, Any]:
    """The verdict by the rule of `sam2_fast.proving`. first_call_s: with compilation."""
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
