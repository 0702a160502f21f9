"""Scratch memory is never read before it is written: results do not depend on what an allocation
holds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam2_fast.ops.core.native import native, no_cpu

SCRIPT = """
import hashlib, sys
import torch
import test_hiera_block, test_mask_decoder, test_memory_attention, test_memory_encoder
import test_preprocess
import test_rope_attention, test_window_attention

digest = hashlib.sha256()
isa = sys.argv[1]
for dtype in (torch.float32, torch.bfloat16):
    found = []
    for shape in test_hiera_block.SHAPES.values():
        found.append(
            test_hiera_block.poisoned(
                test_hiera_block.cast(test_hiera_block.case(*shape), dtype), isa
            )
        )
    for shape in test_window_attention.SHAPES.values():
        found.append(
            test_window_attention.poisoned(
                test_window_attention.cast(test_window_attention.case(*shape), dtype), isa
            )
        )
    for tokens in (8, 9, 17, 33):
        for images, absent in ((1, False), (3, True)):
            given = test_mask_decoder.case(
                height=9, width=8, tokens=tokens, images=images, absent=absent
            )
            found += test_mask_decoder.poisoned(test_mask_decoder.cast(given, dtype), isa)
    for side in (3, 6, 9):
        found.append(
            test_memory_attention.poisoned(
                test_memory_attention.cast(test_memory_attention.case(side=side), dtype), isa
            )
        )
        q, k, v, table = test_rope_attention.case(side, 2, 5)
        found.append(
            test_rope_attention.poisoned((q.to(dtype), k.to(dtype), v.to(dtype), table), 5, isa)
        )
    for shape in test_memory_encoder.SHAPES.values():
        found.append(
            test_memory_encoder.poisoned(
                test_memory_encoder.cast(test_memory_encoder.case(**shape), dtype), isa
            )
        )
    for height, width, size in test_preprocess.SIZES:
        frame, statistics = (
            test_preprocess.picture(height, width),
            (test_preprocess.MEAN, test_preprocess.STD),
        )
        found.append(test_preprocess._native_images(frame[None], size, *statistics, isa=isa))
        found.append(test_preprocess._native_frame(frame, size, *statistics, isa=isa))
    for x in found:
        assert torch.isfinite(x).all()
        digest.update(x.float().contiguous().numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is glibc's")
def test_results_do_not_depend_on_what_memory_held() -> None:
    module = native()
    if module is None:
        pytest.skip(str(no_cpu()))
    found = set()
    for fill in ("1", "128", "64"):  # allocations hold bytes fe; 7f: the largest numbers; bf
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
        found.add(run.stdout)
    assert len(found) == 1
