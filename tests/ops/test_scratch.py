"""Scratch memory is not read before it is written: results do not depend on the contents of
allocated memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_fast.ops.core.native import native, no_cpu

SCRIPT = """
import hashlib
import sys

import test_hiera_block
import test_mask_decoder
import test_memory_attention
import test_memory_encoder
import test_preprocess
import test_rope_attention
import test_window_attention
import torch


def output(module, dtype, *args, **kwargs):
    return module.native_output(module.cast(module.case(*args, **kwargs), dtype), isa)


digest = hashlib.sha256()
isa = sys.argv[1]
for dtype in (torch.float32, torch.bfloat16):
    outputs = []
    for module in (test_hiera_block, test_window_attention):
        outputs += [output(module, dtype, *shape) for shape in module.SHAPES.values()]
    for tokens in (8, 9, 17, 33):
        for images, absent in ((1, False), (3, True)):
            inputs = test_mask_decoder.case(
                height=9, width=8, tokens=tokens, images=images, absent=absent
            )
            outputs += test_mask_decoder.native_outputs(test_mask_decoder.cast(inputs, dtype), isa)
    for side in (3, 6, 9):
        outputs.append(output(test_memory_attention, dtype, side=side))
        q, k, v, table = test_rope_attention.case(side, 2, 5)
        inputs = (q.to(dtype), k.to(dtype), v.to(dtype), table)
        outputs.append(test_rope_attention.native_output(inputs, 5, isa))
    for shape in test_memory_encoder.SHAPES.values():
        outputs.append(output(test_memory_encoder, dtype, **shape))
    for height, width, size in test_preprocess.SIZES:
        frame = test_preprocess.picture(height, width)
        statistics = test_preprocess.MEAN, test_preprocess.STD
        outputs.append(test_preprocess._native_images(frame[None], size, *statistics, isa=isa))
        outputs.append(test_preprocess._native_frame(frame, size, *statistics, isa=isa))
    for x in outputs:
        assert torch.isfinite(x).all()
        digest.update(x.float().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""
"""Prints a digest of the outputs of all native kernels that use scratch memory."""


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is glibc's")
def test_results_do_not_depend_on_the_contents_of_allocated_memory() -> None:
    module = native()
    if module is None:
        pytest.skip(str(no_cpu()))
    digests = set()
    # Allocated memory is filled with the complement of the byte: fe, 7f (very large numbers), bf.
    for fill in ("1", "128", "64"):
        environment = {
            **os.environ,
            "MALLOC_PERTURB_": fill,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        }
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, module.cpu_isa()],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=240,
        )
        assert run.returncode == 0, run.stderr
        digests.add(run.stdout)
    assert len(digests) == 1
