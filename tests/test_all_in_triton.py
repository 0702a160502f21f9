"""Images, videos and automatic masks with every op in Triton, as a GPU would choose them: in the
interpreter, against torch in float64.
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
from tests.test_all_in_triton import in_triton, masks_and_boxes, without_the_native_module

without_the_native_module()
exact, _ = masks_and_boxes(torch.float64)
torchs = {dtype: masks_and_boxes(dtype) for dtype in (torch.float32, torch.float16)}
used = in_triton()
for dtype, (theirs, boxes) in torchs.items():
    mine, found = masks_and_boxes(dtype)
    errors = [
        sum((a.double() - b).square().sum() for a, b in zip(x, exact)).sqrt().item()
        for x in (mine, theirs)
    ]
    assert errors[0] <= 2 * errors[1], (dtype, errors)
    assert found == boxes, dtype
assert used == {
    "hiera_block",
    "mask_decoder",
    "mask_postprocess",
    "memory_attention",
    "memory_encoder",
    "nms",
    "object_heads",
    "preprocess_frame",
    "preprocess_images",
    "small_components",
}, used
"""


def without_the_native_module() -> None:
    from sam2_fast.ops.core import native

    native.native = lambda: None


def in_triton() -> set[str]:
    """Every op that has a Triton backend runs there from now on; returns the names of those that
    ran.
    """
    from sam2_fast.image import automatic as mask_generator

    used: set[str] = set()

    def noted(op: str, run: Any) -> Any:
        return lambda *given, **named: used.add(op) or run(*given, **named)

    for (op, backend), implementation in list(registry._implementations.items()):
        if backend == "triton":
            registry._implementations[op, backend] = registry.Implementation(
                op, backend, noted(op, implementation.run), lambda *_: None
            )
    mask_generator._on_accelerator = lambda device: True
    return used


def masks_and_boxes(
    dtype: torch.dtype, device: str = "cpu", recordings: bool = True
) -> tuple[list[Tensor], list[list[float]]]:
    """Logits of a click and a box on a picture, of two objects through three frames; boxes of
    automatic masks.
    """
    from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
    from sam2_fast.image.predictor import SAM2ImagePredictor
    from tests.video.recorded import frames, small_predictor

    model = small_predictor().to(device=device, dtype=dtype)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    images = SAM2ImagePredictor(model)
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side=2,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=0.98,
    )
    if not recordings:
        for predictor in (model, images, generator.predictor):
            predictor.graphs = None
    images.set_image(picture)
    click = images.predict(
        point_coords=np.array([[30, 20]]), point_labels=np.array([1]), return_logits=True
    )
    box = images.predict(box=np.array([10, 10, 50, 40]), multimask_output=False, return_logits=True)
    found = [torch.from_numpy(x[2]) for x in (click, box)]
    state = model.init_state(frames(3))
    model.add_new_points_or_box(
        state, 0, 1, points=np.array([[15, 30]], np.float32), labels=np.array([1], np.int32)
    )
    model.add_new_points_or_box(state, 0, 2, box=np.array([40, 10, 70, 50], np.float32))
    found += [masks.cpu() for _, _, masks in model.propagate_in_video(state)]
    return found, [record["bbox"] for record in generator.generate(picture)]


def test_masks_are_those_of_torch_within_its_own_error() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masks_are_those_of_torch_within_its_own_error_on_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    exact, _ = masks_and_boxes(torch.float64)
    mine, _ = masks_and_boxes(dtype, "cuda")
    for op, backend in list(registry._implementations):
        if backend in ("triton", "cuda"):
            set_absence(monkeypatch, op, backend, "left out")
    in_torch, _ = masks_and_boxes(dtype, "cuda", recordings=False)
    errors = [
        sum((a.double() - b).square().sum() for a, b in zip(x, exact, strict=True)).sqrt().item()
        for x in (mine, in_torch)
    ]
    assert errors[0] <= 2 * errors[1], errors
