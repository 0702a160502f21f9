"""Triton kernels are proved, in the interpreter on a CPU and on a GPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from sam2_fast.ops.core.native import no_triton
from sam2_fast.proving.gate import Gate, using
from tests.ops.triton_tools import interpret

PROGRAM = """
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
import torch
from sam2_fast.proving import case
from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import CARD
from tests.test_all_in_triton import disable_native_module, masks_and_boxes, run_ops_in_triton

warnings.filterwarnings("error", message="sam2_fast")
case.milliseconds = lambda *_: 1.0  # times of the interpreter are meaningless
disable_native_module()
called = run_ops_in_triton()


def guards(backend, device):
    return backend == "triton"


with TemporaryDirectory() as directory:
    with using(Gate(guards, lambda _: CARD, lambda: Path(directory))) as gate:
        masks_and_boxes(torch.float16)
        verdicts = gate.cache.contents(torch.device("cpu")).verdicts.values()
    proved = {v.op for v in verdicts if v.reason is None}
    assert proved == called and len(proved) >= 9, (proved, called)
    assert all(v.error is None or v.error <= 2 for v in verdicts), verdicts
"""


@pytest.mark.slow
def test_every_kernel_of_a_session_is_proved_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_kernel_of_a_session_is_proved_on_a_gpu(dtype: torch.dtype, tmp_path: Path) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    from tests.test_all_in_triton import masks_and_boxes

    with warnings.catch_warnings(), using(Gate(directory=lambda: tmp_path)) as gate:
        warnings.filterwarnings("error", message="sam2_fast")
        masks_and_boxes(dtype, "cuda")
        verdicts = gate.cache.contents(torch.device("cuda", torch.cuda.current_device())).verdicts
    ops = {"hiera_block", "mask_decoder", "memory_attention", "memory_encoder"}
    assert {v.op for v in verdicts.values()} >= ops
    assert all(v.reason is None for v in verdicts.values()), verdicts
