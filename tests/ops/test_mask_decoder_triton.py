"""The mask decoder in Triton: its arithmetic in the interpreter, its code for several GPUs, and
there what the CPU promises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_decoder import mask_decoder
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast
from tests.ops.triton_tools import interpret, resources

SHAPES: dict[str, dict[str, Any]] = {
    "a block and a part": {},
    "an image each": {
        "height": 4,
        "width": 8,
        "images": 3,
        "frames": 3,
        "heads": 8,
        "hidden": 64,
        "tokens": 9,
    },
    "hints, absent tokens, the best": {"images": 3, "absent": True, "best": True, "heads": 8},
    "one image token": {
        "height": 1,
        "width": 1,
        "objects": 9,
        "masks": 1,
        "tokens": 2,
        "first": 1,
        "heads": 1,
    },
    "four masks": {"height": 9, "width": 2, "tokens": 16, "masks": 4, "objects": 1, "heads": 2},
    "many tokens": {"height": 3, "width": 3, "tokens": 33, "objects": 1, "heads": 8},
}

SHARED = [(80, 163), (89, 99), (90, 227), (120, 99)]
"""Compute capabilities and KB of shared memory that a block may have."""

INTERPRETED = """
from sam2_fast.kernels import mask_decoder as kernels
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast
from tests.ops.test_mask_decoder_triton import SHAPES

for name, shape in list(SHAPES.items())[{part} :: 6]:
    of_iou = Errors()  # a few numbers an object: judged over all dtypes and scales together
    for dtype in (torch.float32, torch.float16):
        for scale in (1.0, 8.0):
            errors = Errors()
            for draw in range(2 if shape.get("objects", 3) > 2 else 4):
                given = cast(case(**shape, dim=128, scale=scale, draw=draw), dtype)
                exact = mask_decoder_reference(*cast(given, torch.float64))
                present = given.present
                if present is None:
                    present = torch.ones(given.prompts.shape[:2], dtype=torch.bool)
                ours, torchs = triton_decoder(*given), mask_decoder_reference(*given)
                assert [x.dtype for x in ours] == [x.dtype for x in torchs]
                assert (ours[2][~present] == 0).all()
                if draw == 0:
                    scattered = given._replace(
                        prompts=given.prompts.transpose(0, 1).contiguous().transpose(0, 1),
                        image=given.image.transpose(1, 2).contiguous().transpose(1, 2),
                        weights=given.weights.mapped(
                            lambda _, w: w.transpose(0, -1).contiguous().transpose(0, -1)
                        ),
                    )
                    assert all(map(torch.equal, triton_decoder(*scattered), ours))
                results = ours, torchs, exact
                errors.add(*((logits, tokens[present]) for logits, _, tokens in results))
                of_iou.add(*([iou] for _, iou, _ in results))
            errors.check(name, dtype, scale)
    of_iou.check(name, "predicted IoU")
"""

NARROWED = """
from sam2_fast.ops.mask_decoder.reference import mask_decoder_reference
from sam2_fast.ops.mask_decoder.triton_kernels import triton_decoder
from tests.ops.errors import Errors
from tests.ops.test_mask_decoder import case, cast

errors = Errors()
for draw in range(4):
    given = case(dim=128, heads=8, draw=draw)
    exact = mask_decoder_reference(*cast(given, torch.float64))
    with torch.autocast("cpu", torch.float16):
        torchs, ours = mask_decoder_reference(*given), triton_decoder(*given)
    assert [x.dtype for x in ours] == [torch.float32] * 3
    errors.add(ours, torchs, exact)
errors.check()
"""


def test_computes_in_the_dtype_of_autocast() -> None:
    pytest.importorskip("triton")
    interpret(NARROWED)


@pytest.mark.proves("interpreted", "mask_decoder:triton")
@pytest.mark.parametrize("part", range(6))
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter(part: int) -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED.replace("{part}", str(part)))


@pytest.mark.proves("compiled", "mask_decoder:triton")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_token_to_image_attention_compiles_without_spills_and_fits(
    capability: int, shared: int, rows: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kinds = dict.fromkeys(("image", "position", "queries"), "*bf16")
    kinds |= dict.fromkeys(("span_accumulators", "span_maxima", "span_sums"), "*fp32")
    kinds |= {"count": "i32", "rows": "i32", "shared": "i32", "scale": "fp32"}
    constants = {
        "ROWS": rows,
        "DIM": 256,
        "BLOCK": kernels.image_tokens_at_once(2, capability),
        "EXACT": False,
    }
    kernel = kernels.token_to_image_attention_kernel
    found = resources(kernel, kinds, constants, capability, kernels.WARPS, 1, ("count", "rows"))
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("stream", ["*bf16", "*fp32"])
@pytest.mark.parametrize("tokens", [4, 8, 16, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_image_to_token_attention_compiles_without_spills_and_fits(
    capability: int, shared: int, tokens: int, stream: str
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kernel = kernels.image_to_token_attention_kernel
    kinds = (
        dict.fromkeys(kernel.arg_names, "*bf16")
        | dict.fromkeys(("image", "position", "out"), stream)
        | {"offsets": "*fp32"}
    )
    kinds |= {"count": "i32", "shared": "i32", "scale": "fp32", "eps": "fp32"}
    constants = {
        "HEADS": 8,
        "AT_ONCE": kernels.heads_at_once(8, tokens),
        "TOKENS": tokens,
        "DIM": 256,
        "BLOCK": kernels.IMAGE_BLOCK,
    }
    found = resources(
        kernel, kinds, constants | {"EXACT": False}, capability, kernels.WARPS, 2, ("count",)
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("masks", [1, 3, 4])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_upscaling_and_predicting_masks_compiles_without_spills_and_fits(
    capability: int, shared: int, masks: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_prediction as kernels

    kernel = kernels.upscale_and_predict_masks_kernel
    kinds = (
        dict.fromkeys(kernel.arg_names, "*bf16")
        | dict.fromkeys(("hypernetwork", "iou", "logits"), "*fp32")
        | {"eps": "fp32"}
    )
    kinds |= dict.fromkeys(
        ("count", "width", "mid_stride", "high_stride", "iou_count", "first_value", "num_masks"),
        "i32",
    )
    constants = {
        "CHOOSE": masks == 1,
        "VALUES": 4,
        "MASKS": masks,
        "DIM": 256,
        "BLOCK": kernels.BLOCK,
        "EXACT": False,
    }
    found = resources(
        kernel,
        kinds,
        constants,
        capability,
        kernels.WARPS,
        1,
        ("count", "width", "mid_stride", "high_stride"),
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


STEPS = {
    "the prompts": {"FROM_PROMPTS": True, "SELF": True},
    "to the image": {"TO_IMAGE": True, "PARTS": 8},
    "from the image, and to themselves": {"ADD": True, "TO_TOKEN": True, "SELF": True, "PARTS": 16},
    "from the image, and to it": {"ADD": True, "TO_TOKEN": True, "TO_IMAGE": True, "PARTS": 16},
    "to themselves": {"ADD": True, "SELF": True, "PARTS": 16},
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize(("capability", "shared"), SHARED)
def test_steps_of_the_tokens_compile_without_spills_and_fit(
    capability: int, shared: int, tokens: int, step: dict[str, Any]
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_tokens as kernels
    from sam2_fast.kernels.decoder_step import token_step_kernel as kernel

    flags = (
        dict.fromkeys(("FROM_PROMPTS", "ADD", "TO_TOKEN", "SELF", "TO_IMAGE", "EXACT"), False)
        | {"MASKED": True, "PARTS": 1}
        | step
    )
    if tokens > 32 and flags["SELF"] and flags["TO_TOKEN"]:
        return  # two launches, each of which is compiled here
    kinds = dict.fromkeys(kernel.arg_names, "*bf16") | {"present": "*u8"}
    kinds |= dict.fromkeys(("parts", "residual", "tokens", "self_parts", "offsets"), "*fp32")
    kinds |= dict.fromkeys(("prompt_stride", "count", "rows"), "i32") | dict.fromkeys(
        ("self_scale", "eps"), "fp32"
    )
    constants = flags | {"HEADS": 8, "TOKENS": tokens, "DIM": 256}
    found = resources(
        kernel, kinds, constants, capability, kernels.WARPS, kernels.STAGES, ("prompt_stride",)
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("tokens", [16, 32, 64])
@pytest.mark.parametrize(("capability", "shared"), SHARED)
def test_the_mlp_of_the_tokens_compiles_without_spills_and_fits(
    capability: int, shared: int, tokens: int
) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_mlp as kernels

    kinds = dict.fromkeys(kernels.token_mlp_kernel.arg_names, "*bf16") | {"eps": "fp32"}
    kinds |= dict.fromkeys(("parts", "residual", "tokens", "mlp_parts"), "*fp32") | dict.fromkeys(
        ("count", "hidden", "span"), "i32"
    )
    constants = {"PARTS": 8, "TOKENS": tokens, "DIM": 256, "BLOCK": kernels.HIDDEN, "EXACT": False}
    found = resources(
        kernels.token_mlp_kernel,
        kinds,
        constants,
        capability,
        kernels.WARPS,
        kernels.STAGES,
        ("hidden", "span"),
    )
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize(("capability", "shared"), SHARED)
def test_the_heads_compile_without_spills_and_fit(capability: int, shared: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import decoder_heads as kernels
    from sam2_fast.kernels.mask_decoder import MAX_SPANS

    floats = dict.fromkeys(
        (
            "span_accumulators",
            "span_maxima",
            "span_sums",
            "parts",
            "residual",
            "iou",
            "hypernetwork",
        ),
        "*fp32",
    )
    floats |= {"present": "*u8", "eps": "fp32"}
    numbers = dict.fromkeys(
        ("spans", "count", "rows", "hidden", "iou_count", "first_mask", "iou_token", "num_masks"),
        "i32",
    )
    wide = {
        "MASKED": True,
        "PARTS": 8,
        "DIM": 256,
        "WIDE": 256,
        "VALUES": 4,
        "BLOCK": kernels.HIDDEN,
    }
    for kernel, constants, warps in (
        (
            kernels.token_to_image_output_kernel,
            {"SPANS": MAX_SPANS, "TOGETHER": 1, "HEADS": 8, "DIM": 256},
            4,
        ),
        (
            kernels.token_to_image_output_kernel,
            {"SPANS": 8, "TOGETHER": 4, "HEADS": 8, "DIM": 256},
            4,
        ),
        (kernels.token_heads_kernel, wide, 8),
    ):
        names = [n for n in kernel.arg_names if n not in constants]
        kinds = dict.fromkeys(names, "*bf16") | {
            n: kind for n, kind in (floats | numbers).items() if n in names
        }
        found = resources(
            kernel, kinds, constants, capability, warps, 3, ("hidden",) if "hidden" in names else ()
        )
        assert found[1] == 0 and found[2] <= shared * 1024, found


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"mask_decoder: triton refuses: .*Would run: cpu"):
        mask_decoder(*case(), backend="triton")


@pytest.mark.proves("gpu test", "mask_decoder:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape",
    [*SHAPES.values(), {"height": 64, "width": 64, "dim": 256, "hidden": 2048, "heads": 8}],
    ids=str,
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: dict[str, Any], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors, stream = Errors(), torch.cuda.Stream()
    for draw in range(12):
        given = cast(case(**{"dim": 128, **shape}, draw=draw), dtype)
        given = given._replace(
            **{
                name: x.cuda() for name, x in given._asdict().items() if isinstance(x, torch.Tensor)
            },
            weights=given.weights.to("cuda"),
        )
        exact = mask_decoder_reference(*cast(given, torch.float64))
        torchs = mask_decoder_reference(*given)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            ours = mask_decoder(*given, backend="triton")
        stream.synchronize()
        present = given.present
        if present is None:
            present = torch.ones_like(given.prompts[..., 0], dtype=torch.bool)
        results = ours, torchs, exact
        errors.add(*((logits, iou, tokens[present]) for logits, iou, tokens in results))
        assert all(map(torch.equal, mask_decoder(*given, backend="triton"), ours)), "run to run"
    errors.check()
