"""The mask decoder in Triton: its arithmetic in the interpreter, its code for several GPUs, and there what the CPU promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.mask_decoder import mask_decoder, mask_decoder_reference
from sam2_fast.ops.native import no_triton
from sam2_fast.ops.registry import BackendError
from tests.ops.test_mask_decoder import case, cast, error
from tests.ops.triton_tools import interpret, resources

SHAPES: dict[str, dict[str, Any]] = {
    "a block and a part": {},
    "an image each": {"height": 4, "width": 8, "images": 3, "frames": 3, "heads": 8, "hidden": 64, "tokens": 9},
    "hints, absent tokens, the best": {"images": 3, "absent": True, "best": True, "heads": 8},
    "one image token": {"height": 1, "width": 1, "objects": 9, "masks": 1, "tokens": 2, "first": 1, "heads": 1},
    "four masks": {"height": 9, "width": 2, "tokens": 16, "masks": 4, "objects": 1, "heads": 2},
    "many tokens": {"height": 3, "width": 3, "tokens": 33, "objects": 2, "heads": 8},
}

INTERPRETED = """
from sam2_fast.kernels import mask_decoder as kernels
from sam2_fast.ops.mask_decoder import mask_decoder_reference
from sam2_fast.ops.mask_decoder_triton import triton_decoder
from tests.ops.test_mask_decoder import case, cast, error
from tests.ops.test_mask_decoder_triton import SHAPES

for name, shape in list(SHAPES.items())[{part}::3]:
    for dtype in (torch.float32, torch.float16):
        for scale in (1.0, 8.0):
            errors = torch.zeros(3, 3)  # of logits, predicted IoU and tokens: ours, torch's, that of rounding the truth
            for draw in range(4):  # the error of a few objects is chance
                given = cast(case(**shape, dim=128, scale=scale, draw=draw), dtype)
                exact = mask_decoder_reference(*cast(given, torch.float64))
                there = torch.ones(given.prompts.shape[:2], dtype=torch.bool) if given.present is None else given.present
                theirs, mine = list(mask_decoder_reference(*given)), list(triton_decoder(*given))
                assert [x.dtype for x in mine] == [x.dtype for x in theirs] and mine[0].shape == theirs[0].shape
                assert (mine[2][~there] == 0).all()
                mine[2], theirs[2], exact = mine[2][there], theirs[2][there], (*exact[:2], exact[2][there])
                for i, which in enumerate(exact):
                    errors[i] += torch.tensor([error(x, which) ** 2 for x in (mine[i], theirs[i], which.to(dtype))])
            ours, torchs, rounding = errors.sqrt().unbind(1)
            assert (ours <= 2 * torch.maximum(torchs, rounding)).all(), (name, dtype, scale, errors)
"""

NARROWED = """
from sam2_fast.ops.mask_decoder import mask_decoder_reference
from sam2_fast.ops.mask_decoder_triton import triton_decoder
from tests.ops.test_mask_decoder import case, cast, error

errors = torch.zeros(3, 2)
for draw in range(4):
    given = case(dim=128, heads=8, draw=draw)
    exact = mask_decoder_reference(*cast(given, torch.float64))
    with torch.autocast("cpu", torch.float16):
        theirs, mine = mask_decoder_reference(*given), triton_decoder(*given)
    assert [x.dtype for x in mine] == [torch.float32] * 3
    for i, which in enumerate(exact):
        errors[i] += torch.tensor([error(mine[i], which) ** 2, error(theirs[i], which) ** 2])
assert (errors[:, 0] <= 4 * errors[:, 1]).all(), errors.sqrt()
"""


def test_computes_in_the_dtype_of_autocast() -> None:
    pytest.importorskip("triton")
    interpret(NARROWED)


@pytest.mark.proves("interpreted", "mask_decoder:triton")
@pytest.mark.parametrize("part", [0, 1, 2])
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter(part: int) -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED.replace("{part}", str(part)))


@pytest.mark.proves("compiled", "mask_decoder:triton")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_looking_compiles_without_spills_and_fits(capability: int, shared: int, rows: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kinds = dict.fromkeys(("pixels", "place", "queries"), "*bf16") | dict.fromkeys(("sums", "largest", "totals"), "*fp32")
    kinds |= {"count": "i32", "rows": "i32", "shared": "i32", "scale": "fp32"}
    constants = {"ROWS": rows, "DIM": 256, "BLOCK": kernels.seen_at_once(2, capability), "EXACT": False}
    found = resources(kernels.look_kernel, kinds, constants, capability, kernels.WARPS, 1, ("count", "rows"))
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("stream", ["*bf16", "*fp32"])
@pytest.mark.parametrize("tokens", [4, 8, 16, 64])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_taking_compiles_without_spills_and_fits(capability: int, shared: int, tokens: int, stream: str) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kinds = dict.fromkeys(kernels.take_kernel.arg_names, "*bf16") | {"offsets": "*fp32", "pixels": stream, "place": stream, "out": stream}
    kinds |= {"count": "i32", "shared": "i32", "scale": "fp32", "eps": "fp32"}
    constants = {"HEADS": 8, "AT_ONCE": kernels.heads_at_once(8, tokens), "TOKENS": tokens, "DIM": 256, "BLOCK": kernels.TAKING}
    found = resources(kernels.take_kernel, kinds, constants | {"EXACT": False}, capability, kernels.WARPS, 2, ("count",))
    assert found[1] == 0 and found[2] <= shared * 1024, found


@pytest.mark.parametrize("masks", [1, 3, 4])
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (90, 227), (120, 99)])
def test_drawing_compiles_without_spills_and_fits(capability: int, shared: int, masks: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_decoder as kernels

    kinds = dict.fromkeys(kernels.paint_kernel.arg_names, "*bf16") | {"brushes": "*fp32", "logits": "*fp32", "eps": "fp32"}
    kinds |= dict.fromkeys(("count", "width", "mid_stride", "high_stride"), "i32")
    constants = {"MASKS": masks, "DIM": 256, "BLOCK": kernels.PAINTED, "EXACT": False}
    found = resources(kernels.paint_kernel, kinds, constants, capability, kernels.WARPS, 1, ("count", "width", "mid_stride", "high_stride"))
    assert found[1] == 0 and found[2] <= shared * 1024, found


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"mask_decoder: triton refuses: .*Would run: cpu"):
        mask_decoder(*case(), backend="triton")


@pytest.mark.proves("gpu test", "mask_decoder:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES.values(), {"height": 64, "width": 64, "dim": 256, "hidden": 2048, "heads": 8}], ids=str)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(shape: dict[str, Any], dtype: torch.dtype) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors, stream = torch.zeros(3, 3), torch.cuda.Stream()
    for draw in range(12):
        given = cast(case(**{"dim": 128, **shape}, draw=draw), dtype)
        given = given._replace(
            **{name: x.cuda() for name, x in given._asdict().items() if isinstance(x, torch.Tensor)},
            weights=[w.cuda() for w in given.weights],
        )
        exact, theirs = mask_decoder_reference(*cast(given, torch.float64)), mask_decoder_reference(*given)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            mine = mask_decoder(*given, backend="triton")
        stream.synchronize()
        there = torch.ones_like(given.prompts[..., 0], dtype=torch.bool) if given.present is None else given.present
        for i, which in enumerate(exact):
            rows = there if i == 2 else slice(None)
            errors[i] += torch.tensor([error(x[rows], which[rows]) ** 2 for x in (mine[i], theirs[i], which.to(dtype))])
        assert all(map(torch.equal, mask_decoder(*given, backend="triton"), mine)), "run to run"
    ours, torchs, rounding = errors.sqrt().unbind(1)
    assert (ours <= 2 * torch.maximum(torchs, rounding)).all(), errors
