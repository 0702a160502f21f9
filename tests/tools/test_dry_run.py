"""The dry run: analysis of binaries, comparison of tables, and two stages of the real model."""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
import torch

from tools import dry_run
from tools.gpu import fake
from tools.gpu.architectures import ARCHITECTURES
from tools.gpu.fake import FakeGpu
from tools.gpu.report import differences
from tools.gpu.stages import STAGES

COMMITTED = json.loads(dry_run.TABLE.read_text())
SASS = """
.text.some_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/                   STL [R1], R2 ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
        /*0060*/                   FADD R2, R2, R3 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
"""


def test_the_main_loop_is_the_innermost_one_with_matrix_instructions() -> None:
    from tools.gpu import binary

    instructions, loops = binary._loops(SASS)
    assert len(instructions) == 10 and loops == [(2, 6), (1, 8)]
    first, last = binary._main_loop(instructions, loops)
    assert (first, last) == (2, 6)
    assert binary._flops(instructions[first:last]) == 2 * 64 * 64 * 16 // 4 + 2 * 16 * 8 * 16


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "warps", "expected"),
    [
        (90, 128, 144 << 10, 8, 1),  # shared memory
        (90, 168, 60 << 10, 4, 3),  # registers: 65536 / (168 * 128) = 3.05
        (90, 32, 0, 4, 16),  # threads
        (80, 16, 0, 1, 32),  # blocks
        (120, 100, 40 << 10, 4, 2),  # two blocks of 41 KB fit into 100 KB
    ],
)
def test_the_number_of_resident_blocks(
    capability: int, registers: int, shared: int, warps: int, expected: int
) -> None:
    assert ARCHITECTURES[capability].resident_blocks(registers, shared, warps) == expected


def test_the_committed_table_is_complete_and_has_no_spills() -> None:
    assert set(COMMITTED["architectures"]) == {str(c) for c in ARCHITECTURES}
    for capability, rows in COMMITTED["architectures"].items():
        assert set(rows["models"]) == set(dry_run.MODELS)
        launched: set[str] = set()
        for model, stages in rows["models"].items():
            assert set(stages) == set(STAGES), (capability, model)
            for stage in stages.values():
                launches = sum(row["launches"] for row in stage["kernels"].values())
                assert stage["triton_launches"] == launches
                assert stage["limit_us"] <= stage["forecast_us"]
                launched |= set(stage["kernels"])
        assert launched == set(rows["kernels"])
        assert not [label for label, row in rows["kernels"].items() if row["spills"]]
        assert all(row["resident"] >= 1 for row in rows["kernels"].values())


def faults_after(change: Any) -> list[str]:
    """Faults of a changed table in comparison with the committed one."""
    table = copy.deepcopy(COMMITTED)
    rows = table["architectures"]["90"]
    change(rows["kernels"], rows["models"]["tiny"]["track 1"])
    return differences(table, COMMITTED)


def add_to_attention(kernels: dict[str, Any], key: str, change: int) -> None:
    """Change a value of the first attention kernel."""
    next(row for label, row in kernels.items() if label.startswith("attend_kernel"))[key] += change


def add_to_stage(stage: dict[str, Any], key: str) -> None:
    stage[key] += 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda kernels, _: add_to_attention(kernels, "registers", 1), "registers rose"),
        (lambda kernels, _: add_to_attention(kernels, "spills", 3), "spilled, 3 accesses"),
        (lambda kernels, _: add_to_attention(kernels, "resident", -1), "multiprocessor fell"),
        (lambda _, stage: add_to_stage(stage, "triton_launches"), "triton_launches rose"),
        (lambda _, stage: add_to_stage(stage, "torch_operations"), "torch_operations rose"),
        (lambda kernels, _: kernels.update(new=next(iter(kernels.values()))), "not in the table"),
    ],
    ids=["registers", "spills", "resident", "launches", "operations", "new"],
)
def test_a_worse_value_is_a_fault(change: Any, fault: str) -> None:
    (text,) = faults_after(change)
    assert fault in text


def test_better_values_are_no_fault_and_other_versions_are_not_compared() -> None:
    assert faults_after(lambda kernels, _: add_to_attention(kernels, "registers", -9)) == []
    assert faults_after(lambda _, stage: stage.update(triton_launches=1)) == []
    other = {**COMMITTED, "triton": "1.0"}
    assert "other numbers" in differences(other, COMMITTED)[0]


def test_two_stages_compile_without_spills_and_with_no_more_launches() -> None:
    pytest.importorskip("triton")
    threads = torch.get_num_threads()
    try:
        rows = dry_run.measure(90, ["tiny"], ["encode 1", "track 1"])
    finally:
        torch.set_num_threads(threads)
    assert not [label for label, row in rows["kernels"].items() if row["spills"]]
    committed = COMMITTED["architectures"]["90"]["models"]["tiny"]
    for name, stage in rows["models"]["tiny"].items():
        assert stage["triton_launches"] <= committed[name]["triton_launches"]
        assert stage["gflop"] == pytest.approx(committed[name]["gflop"], rel=1e-3)
    assert rows["models"]["tiny"]["track 1"]["triton_launches"] > 60


def _sm_90(model: str, stage: str) -> dict[str, Any]:
    return COMMITTED["architectures"]["90"]["models"][model][stage]


def _constant(label: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", label)
    assert match is not None, label
    return int(match[1])


@pytest.mark.parametrize(("model", "frames_per_second"), [("tiny", 450), ("large", 170)])
def test_the_forecast_frame_rate_of_a_video_is_high_enough(
    model: str, frames_per_second: int
) -> None:
    frame = _sm_90(model, "encode 4")["forecast_us"] / 4 + _sm_90(model, "track 1")["forecast_us"]
    assert 1e6 / frame >= frames_per_second


@pytest.mark.parametrize("model", ["tiny", "large"])
def test_a_tracked_frame_has_few_launches(model: str) -> None:
    row = _sm_90(model, "track 1")
    assert row["triton_launches"] + row["torch_operations"] <= 150
    merges = [r for label, r in row["kernels"].items() if label.startswith("merge_kernel")]
    assert merges
    for grids in (merge["grids"] for merge in merges):
        assert all(math.prod(map(int, grid.split(" x "))) >= 32 for grid in grids)


def test_attention_on_compute_capability_9_0_has_large_matrix_instructions() -> None:
    kernels = COMMITTED["architectures"]["90"]["kernels"]
    cross = [label for label in kernels if re.match(r"attend_kernel .* VALUES=64 ", label)]
    assert cross
    for label in cross:
        assert (_constant(label, "BLOCK_Q"), _constant(label, "BLOCK_K")) == (256, 64)
    for label, row in kernels.items():
        if label.startswith("attend_kernel"):
            widths = [int(n) for n in re.findall(r"m64n(\d+)k16", row["mma"])]
            assert widths and min(widths) >= 64, label


def test_attention_in_windows_of_the_whole_grid_needs_few_instructions() -> None:
    """Instructions of four warps for 64 queries and 64 keys."""
    kernels = COMMITTED["architectures"]["90"]["kernels"]
    whole = {
        n: r
        for n, r in kernels.items()
        if n.startswith("window_kernel") and "window_height=64" in n
    }
    assert whole
    for label, row in whole.items():
        tiles = _constant(label, "BLOCK_Q") * _constant(label, "BLOCK_K") / 64**2
        assert row["loop_instructions"] / (tiles * 4 / row["warps"]) <= 520, label


def test_a_patch_that_fails_leaves_nothing_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(fake, "_every_op_in_triton", lambda: iter([(torch, "no_such_name", None)]))
    with pytest.raises(AttributeError, match="no_such_name"), FakeGpu(90):
        pass
    assert (torch.Tensor.new_empty, torch.empty_like) == before
