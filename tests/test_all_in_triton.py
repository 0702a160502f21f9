"""Images, videos and automatic masks with every op in Triton, compared with torch in float64.

On a CPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import no_triton
from tests.ops.registered import set_absence
from tests.ops.triton_tools import interpret

PROGRAM = """
from tests.test_all_in_triton import (
    disable_native_module,
    error,
    masks_and_boxes,
    run_ops_in_triton,
)

disable_native_module()
exact, _ = masks_and_boxes(torch.float64)
in_torch = {dtype: masks_and_boxes(dtype) for dtype in (torch.float32, torch.float16)}
called = run_ops_in_triton()
for dtype, (torch_logits, torch_boxes) in in_torch.items():
    logits, boxes = masks_and_boxes(dtype)
    assert error(logits, exact) <= 2 * error(torch_logits, exact), dtype
    assert boxes == torch_boxes, dtype
assert called == {
    *("hiera_block", "mask_decoder", "mask_postprocess", "memory_attention", "memory_encoder"),
    *("nms", "object_heads", "preprocess_frame", "preprocess_images", "small_components"),
}, called
"""


def disable_native_module() -> None:
    from sam2_fast.ops.core import native

    native.native = lambda: None


def run_ops_in_triton() -> set[str]:
    """Run every op that has a Triton backend there from now on.

    Returns a set to which the name of each op is added when it is called.
    """
    from sam2_fast.image import automatic as mask_generator

    called: set[str] = set()

    def with_name(op: str, run: Any) -> Any:
        return lambda *arguments, **named: called.add(op) or run(*arguments, **named)

    for (op, backend), implementation in list(registry._implementations.items()):
        if backend == "triton":
            registry._implementations[op, backend] = registry.Implementation(
                op, backend, with_name(op, implementation.run), lambda *_: None
            )
    mask_generator._on_accelerator = lambda device: True
    return called


def error(logits: list[Tensor], exact: list[Tensor]) -> float:
    """The Euclidean norm of the differences."""
    differences = ((a.double() - b).square().sum() for a, b in zip(logits, exact, strict=True))
    return float(sum(differences)) ** 0.5


def masks_and_boxes(
    dtype: torch.dtype, device: str = "cpu", cuda_graphs: bool = True
) -> tuple[list[Tensor], list[list[float]]]:
    """Logits of prompts on a picture and of tracked objects; boxes of automatic masks.

    The prompts are a click and a box; two objects are tracked on three frames.
    """
    from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
    from sam2_fast.image.predictor import SAM2ImagePredictor
    from tests.video.sessions import frames, small_predictor

    model = small_predictor().to(device=device, dtype=dtype)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image_predictor = SAM2ImagePredictor(model)
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=2,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.98,
    )
    if not cuda_graphs:
        for predictor in (model, image_predictor, generator.predictor):
            predictor.graphs = None
    image_predictor.set_image(picture)
    click = image_predictor.predict(
        point_coords=np.array([[30, 20]]), point_labels=np.array([1]), return_logits=True
    )
    box = image_predictor.predict(
        box=np.array([10, 10, 50, 40]), multimask_output=False, return_logits=True
    )
    logits = [torch.from_numpy(x[2]) for x in (click, box)]
    state = model.init_state(frames(3))
    model.add_new_points_or_box(
        state, 0, 1, points=np.array([[15, 30]], np.float32), labels=np.array([1], np.int32)
    )
    model.add_new_points_or_box(state, 0, 2, box=np.array([40, 10, 70, 50], np.float32))
    logits += [masks.cpu() for _, _, masks in model.propagate_in_video(state)]
    return logits, [record["bbox"] for record in generator.generate(picture)]


@pytest.mark.timeout(900)  # three minutes of Triton's interpreter on an idle machine
def test_masks_err_at_most_twice_as_much_as_those_of_torch() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masks_err_at_most_twice_as_much_as_those_of_torch_on_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    exact, _ = masks_and_boxes(torch.float64)
    in_triton, _ = masks_and_boxes(dtype, "cuda")
    for op, backend in list(registry._implementations):
        if backend in ("triton", "cuda"):
            set_absence(monkeypatch, op, backend, "left out")
    in_torch, _ = masks_and_boxes(dtype, "cuda", cuda_graphs=False)
    assert error(in_triton, exact) <= 2 * error(in_torch, exact)
