"""Masks to counts, boxes and run lengths in Triton: the definition's integers, in the interpreter
and on a GPU, compiled for several.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_postprocess import mask_postprocess
from tests.ops.test_mask_postprocess import SHAPES, logits_of, same
from tests.ops.triton_tools import compiled, interpret, resources

LONG = [
    ((20, 9), (64, 17), (64, 17), (0, 0)),
    ((12, 6), (1100, 3), (1100, 5), (0, 1)),
    ((8, 8), (32, 9), (40, 9), (8, 0)),
]
"""Columns of whole words, of more words than a block, and down to the canvas's end."""
WIDE = ((64, 64), (200, 300), (220, 333), (20, 33))
NARROW = ((64, 20), (200, 60), (220, 93), (20, 33))
"""The largest shape for a GPU, and one with as many blocks of rows and fewer of columns: the
interpreter takes eleven seconds for the first and two for the second, ten times over."""
assert WIDE in SHAPES
INTERPRETED_SHAPES = [NARROW if shape == WIDE else shape for shape in SHAPES] + LONG

INTERPRETED = """
from sam2_fast.kernels import mask_postprocess as kernels
from sam2_fast.ops.mask_postprocess import Judged, mask_postprocess_reference
from tests.ops.test_mask_postprocess import logits_of, same
from tests.ops.test_mask_postprocess_triton import INTERPRETED_SHAPES

for low, size, canvas, origin in INTERPRETED_SHAPES:
    for smooth in (True, False):
        logits = logits_of(5, low, smooth)
        logits[0], logits[1], logits[2] = -1.0, 1.0, torch.nan
        logits[2, 0, 0] = 1.0
        wanted = mask_postprocess_reference(logits, size, 0.1, 0.5, canvas, origin)
        for kernels.MAX_PIXELS in (2**31, 2 * size[0] * size[1])[: 1 if size[0] > 100 else 2]:
            found = Judged(*kernels.mask_postprocess(logits, size, -0.4, 0.1, 0.6, canvas, origin))
            assert same(found, wanted), (low, size, canvas, origin, smooth)
            for chosen in ([], [0], [1, 4], [0, 1, 2, 3, 4]):
                flags, looked = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
                flags[chosen], looked[3:4] = True, 3 in chosen
                hidden = logits.masked_fill(~looked[:, None, None], -100.0)
                truth = mask_postprocess_reference(hidden, size, 0.1, 0.5, canvas, origin)

                def keep(*judged):
                    assert same(Judged(*judged, []), Judged(*truth[:3], []))
                    return flags

                some = Judged(
                    *kernels.mask_postprocess(
                        logits, size, -0.4, 0.1, 0.6, canvas, origin, keep, looked
                    )
                )
                assert some.kept.tolist() == chosen
                assert same(some, truth._replace(runs=[truth.runs[i] for i in chosen])), chosen
none = Judged(
    *kernels.mask_postprocess(torch.zeros(0, 4, 4), (8, 8), -1.0, 0.0, 1.0, (8, 8), (0, 0))
)
assert same(
    none, mask_postprocess_reference(torch.zeros(0, 4, 4), (8, 8), 0.0, 1.0, (8, 8), (0, 0))
)
"""


@pytest.mark.proves("interpreted", "mask_postprocess:triton")
def test_gives_the_definitions_integers_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "mask_postprocess:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("name", ["bits", "count", "write"])
def test_compiles_without_spills(name: str, capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_postprocess as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    kinds = dict.fromkeys(kernel.arg_names, "i32")
    kinds |= {
        "logits": "*fp32",
        "bits": "*i32",
        "stats": "*i32",
        "counts": "*i32",
        "ends": "*i64",
        "changes": "*i32",
    }
    kinds |= dict.fromkeys(("lower_threshold", "threshold", "upper_threshold"), "fp32")
    kinds["selected"] = "*u8"
    constants = {
        "CHOOSE": False,
        "STORE": True,
        "COLUMNS": kernels.COLUMNS,
        "ROWS": kernels.ROWS,
        "WORDS": kernels.WORDS,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    found = resources(
        kernel,
        {key: kind for key, kind in kinds.items() if key in kernel.arg_names},
        constants,
        capability,
        4,
        3,
    )
    assert found[1] == 0, found


def test_no_products_are_fused_as_it_is_launched() -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.mask_postprocess import bits_kernel as kernel

    kinds = dict.fromkeys(kernel.arg_names, "i32") | {
        "logits": "*fp32",
        "bits": "*i32",
        "stats": "*i32",
        "selected": "*u8",
    }
    kinds |= dict.fromkeys(("lower_threshold", "threshold", "upper_threshold"), "fp32")
    code = compiled(
        kernel,
        kinds,
        {"CHOOSE": True, "STORE": True, "COLUMNS": 8, "ROWS": 128},
        90,
        aligned=False,
        enable_fp_fusion=False,
    ).asm["ptx"]
    assert "mul.rn.f32" in code and "mul.rn.f64" in code and "fma." not in code


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"mask_postprocess: triton refuses: .*Would run: cpu"):
        mask_postprocess(torch.zeros(1, 4, 4), (8, 8), 0.0, 1.0, backend="triton")


@pytest.mark.proves("gpu test", "mask_postprocess:triton")
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("low", "size", "canvas", "origin"),
    [*SHAPES, *LONG, ((256, 256), (1080, 1920), (1200, 2000), (7, 9))],
)
def test_gives_the_definitions_integers_on_a_gpu(
    low: tuple[int, int], size: tuple[int, int], canvas: tuple[int, int], origin: tuple[int, int]
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    logits = logits_of(5, low, smooth=False).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = mask_postprocess(
            logits, size, 0.1, 0.5, canvas=canvas, origin=origin, backend="triton"
        )
    stream.synchronize()
    on_host = [x.cpu() for x in found[:3]]
    wanted = mask_postprocess(
        logits.cpu(), size, 0.1, 0.5, canvas=canvas, origin=origin, backend="torch"
    )
    assert same(type(found)(*on_host, found.runs), wanted)
