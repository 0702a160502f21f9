"""Counts, boxes and run lengths of masks in Triton: the integers of the definition, in the
interpreter and on a GPU, and compiled code for several GPUs.
"""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_postprocess import mask_postprocess
from tests.ops.test_mask_postprocess import SHAPES, are_equal, random_logits
from tests.ops.triton_tools import compiled, interpret, resources

LONG = [
    ((20, 9), (64, 17), (64, 17), (0, 0)),
    ((12, 6), (1100, 3), (1100, 5), (0, 1)),
    ((8, 8), (32, 9), (40, 9), (8, 0)),
]
"""Columns that fill whole words, that have more words than a block, and that end at the bottom of
the canvas.
"""
LARGEST = ((64, 64), (200, 300), (220, 333), (20, 33))
FEWER_COLUMNS = ((64, 20), (200, 60), (220, 93), (20, 33))
"""Replaces `LARGEST` in the interpreter: it has as many blocks of rows and fewer of columns, and
each run takes two seconds in place of eleven.
"""
assert LARGEST in SHAPES
INTERPRETED_SHAPES = [FEWER_COLUMNS if shape == LARGEST else shape for shape in SHAPES] + LONG

INTERPRETED = """
from sam2_fast.kernels import mask_postprocess as kernels
from sam2_fast.ops.mask_postprocess import Judged, mask_postprocess_reference
from tests.ops.test_mask_postprocess import are_equal, random_logits
from tests.ops.test_mask_postprocess_triton import INTERPRETED_SHAPES

for low, size, canvas, origin in INTERPRETED_SHAPES:
    # Smooth logits take the same path as others, with fewer runs.
    for smooth in (True, False) if size == (20, 30) else (False,):
        logits = random_logits(5, low, smooth)
        logits[0] = -1.0
        logits[1] = 1.0
        logits[2] = torch.nan
        logits[2, 0, 0] = 1.0
        expected = mask_postprocess_reference(logits, size, 0.1, 0.5, canvas, origin)
        # All masks in one chunk, and two masks in each chunk.
        for kernels.MAX_PIXELS in (2**31, 2 * size[0] * size[1])[: 1 if size[0] > 100 else 2]:
            output = Judged(*kernels.mask_postprocess(logits, size, -0.4, 0.1, 0.6, canvas, origin))
            assert are_equal(output, expected), (low, size, canvas, origin, smooth)
            subsets = ([], [0], [1, 4], [0, 1, 2, 3, 4])
            for chosen in subsets if kernels.MAX_PIXELS == 2**31 else ([1, 4],):
                flags = torch.zeros(5, dtype=torch.bool)
                flags[chosen] = True
                which = torch.ones(5, dtype=torch.bool)
                which[3] = 3 in chosen
                selected_logits = logits.masked_fill(~which[:, None, None], -100.0)
                expected_subset = mask_postprocess_reference(
                    selected_logits, size, 0.1, 0.5, canvas, origin
                )

                def keep(*statistics):
                    assert are_equal(Judged(*statistics, []), Judged(*expected_subset[:3], []))
                    return flags

                subset = Judged(
                    *kernels.mask_postprocess(
                        logits, size, -0.4, 0.1, 0.6, canvas, origin, keep, which
                    )
                )
                assert subset.kept.tolist() == chosen
                runs = [expected_subset.runs[i] for i in chosen]
                assert are_equal(subset, expected_subset._replace(runs=runs)), chosen

no_logits = torch.zeros(0, 4, 4)
assert are_equal(
    Judged(*kernels.mask_postprocess(no_logits, (8, 8), -1.0, 0.0, 1.0, (8, 8), (0, 0))),
    mask_postprocess_reference(no_logits, (8, 8), 0.0, 1.0, (8, 8), (0, 0)),
)
"""


@pytest.mark.proves("interpreted", "mask_postprocess:triton")
def test_gives_the_integers_of_the_definition_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "mask_postprocess:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
@pytest.mark.parametrize("name", ["bits", "count", "write"])
def test_compiles_without_spills(name: str, capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import mask_postprocess as kernels

    kernel = getattr(kernels, f"{name}_kernel")
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= dict.fromkeys(("bits", "stats", "counts", "changes"), "*i32")
    types |= dict.fromkeys(("lower_threshold", "threshold", "upper_threshold"), "fp32")
    types |= {"logits": "*fp32", "ends": "*i64", "selected": "*u8"}
    constants = {
        "CHOOSE": False,
        "STORE": True,
        "COLUMNS": kernels.COLUMNS,
        "ROWS": kernels.ROWS,
        "WORDS": kernels.WORDS,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    types = {key: name for key, name in types.items() if key in kernel.arg_names}
    used = resources(kernel, types, constants, capability, 4, 3)
    assert used.spilled_bytes == 0, used


def test_the_options_of_the_launch_prevent_fused_multiply_adds() -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels.mask_postprocess import bits_kernel as kernel

    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= dict.fromkeys(("lower_threshold", "threshold", "upper_threshold"), "fp32")
    types |= {"logits": "*fp32", "bits": "*i32", "stats": "*i32", "selected": "*u8"}
    code = compiled(
        kernel,
        types,
        {"CHOOSE": True, "STORE": True, "COLUMNS": 8, "ROWS": 128},
        90,
        aligned=False,
        enable_fp_fusion=False,
    ).asm["ptx"]
    assert "mul.rn.f32" in code and "mul.rn.f64" in code and "fma." not in code


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"mask_postprocess: triton refuses: .*Would run: cpu"):
        mask_postprocess(torch.zeros(1, 4, 4), (8, 8), 0.0, 1.0, backend="triton")


@pytest.mark.proves("gpu test", "mask_postprocess:triton")
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("low", "size", "canvas", "origin"),
    [*SHAPES, *LONG, ((256, 256), (1080, 1920), (1200, 2000), (7, 9))],
)
def test_gives_the_integers_of_the_definition_on_a_gpu(
    low: tuple[int, int], size: tuple[int, int], canvas: tuple[int, int], origin: tuple[int, int]
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    logits = random_logits(5, low, smooth=False).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = mask_postprocess(
            logits, size, 0.1, 0.5, canvas=canvas, origin=origin, backend="triton"
        )
    stream.synchronize()
    on_cpu = [x.cpu() for x in output[:3]]
    expected = mask_postprocess(
        logits.cpu(), size, 0.1, 0.5, canvas=canvas, origin=origin, backend="torch"
    )
    assert are_equal(type(output)(*on_cpu, output.runs), expected)
