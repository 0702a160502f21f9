"""The registry of ops: the registered backends are those that the sources implement."""

from __future__ import annotations

from pathlib import Path

import torch

from sam2_fast.ops.core.op import Backend
from sam2_fast.ops.core.registry import all_implementations, backends
from sam2_fast.ops.core.requirements import Request, on_one

ROOT = Path(__file__).resolve().parents[2]
MINIMAL_OPS = {
    "connected_components",
    "hiera_block",
    "mask_decoder",
    "mask_postprocess",
    "memory_attention",
    "memory_encoder",
    "nms",
    "object_heads",
    "preprocess_frame",
    "preprocess_images",
    "resize_bicubic",
    "rope_attention",
    "small_components",
    "window_attention",
}
"""Ops that must be registered; there may be others."""


def module_of(op: str) -> str:
    """The module of `sam2_fast.ops` that declares an op."""
    module: str = all_implementations()[op, "torch"].run.__module__
    return module.removeprefix("sam2_fast.ops.").split(".")[0]


def test_an_op_has_the_backends_that_its_sources_implement() -> None:
    """csrc/<stem>.h declares launchers for CPUs and CUDA, kernels/<stem>.py implements Triton."""
    rows = [(s.op, s.backend) for s in backends()]
    expected = set()
    for op in {op for op, _ in rows}:
        stem = module_of(op)
        header = ROOT / "csrc" / f"{stem}.h"
        declared = header.read_text() if header.exists() else ""
        expected |= {(op, device) for device in ("cpu", "cuda") if f"_{device}(" in declared}
        expected |= {(op, "triton")} if (ROOT / "kernels" / f"{stem}.py").exists() else set()
        expected |= {(op, "torch")}
    assert len(rows) == len(set(rows)) and set(rows) == expected
    assert {op for op, _ in rows} >= MINIMAL_OPS


def test_requirements_check_every_tensor_of_a_call() -> None:
    a, b = torch.ones(1), torch.ones(1, device="meta")
    for arguments in ((a, 3, b), (3, a, b), (a, [b], 3), ([3, 4], a, (b, None))):
        assert [x.device.type for x in Request(arguments).tensors] == ["cpu", "meta"]
    backend = Backend("cpu", lambda *_: None, (on_one("cpu"),))
    assert backend.refuses(Request((a, 3, a))) is None
    assert "cpu, meta" in (backend.refuses(Request((a, 3, b))) or "")


def test_definitions_are_available_on_every_machine() -> None:
    assert all(s.reason is None for s in backends() if s.backend == "torch")


def test_triton_backends_name_kernels_that_exist() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "kernels").glob("*.py"))
    for (op, backend), implementation in all_implementations().items():
        assert bool(implementation.kernels) == (backend == "triton"), op
        assert all(f"\ndef {name}_kernel(" in sources for name in implementation.kernels), op
