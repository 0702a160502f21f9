"""`gather_rows`, which gathers the memories of objects, is proved before a frame is captured."""

from __future__ import annotations

import pytest
import torch

from sam2_fast.ops.core.registry import Implementation
from sam2_fast.ops.memory_attention import gather_rows
from sam2_fast.ops.memory_attention.gather_rows import ROWS, gather_refusal, select_rows
from sam2_fast.recording import cache as graphs
from sam2_fast.recording.frame import FrameGraph
from sam2_fast.video import lookahead as ahead
from tests.ops.triton_tools import interpret
from tests.video.sessions import NoSideStream, short_session, small_predictor
from tests.video.tape import TapeRecorder, UnconditionalGraphs

PROGRAM = """
from pathlib import Path
from tempfile import TemporaryDirectory
from sam2_fast.kernels import memory_attention as kernels
from sam2_fast.ops.memory_attention.gather_rows import gather_refusal
from sam2_fast.proving import case
from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import CARD

case.milliseconds = lambda *_: 1.0  # times of the interpreter are meaningless
original = kernels.gather_rows


def shift_rows(addresses, like, out):
    original(addresses, like, out)
    out.copy_(out.roll(1, 0))


def fill_null_rows_with_ones(addresses, like, out):
    original(addresses, like, out)
    out[addresses == 0] = 1


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
for wrong in (None, shift_rows, fill_null_rows_with_ones):
    kernels.gather_rows = wrong or original
    with TemporaryDirectory() as directory:
        gate = Gate(lambda backend, _: backend == "triton", lambda _: CARD, lambda: Path(directory))
        with using(gate):
            for like in DTYPES:
                for dtype in (torch.bfloat16, torch.float16):
                    out = torch.empty(3, 48, dtype=dtype)
                    reason = gather_refusal(torch.empty(1, dtype=like), out)
                    assert (reason is None) == (wrong is None), (wrong, like, dtype, reason)
        verdicts = gate.cache.contents(torch.device("cpu")).verdicts.values()
        assert {v.op for v in verdicts} == {"gather_rows"} and len(verdicts) == 6, verdicts
"""


def test_the_kernel_is_proved_and_wrong_kernels_are_refused() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)


def test_the_rows_of_a_proof_are_distinct() -> None:
    rows = torch.linspace(-2, 2, 4 * 48).view(4, 48)
    expected = select_rows(rows, ROWS, torch.float64)
    assert expected.unique(dim=0).shape[0] == 5, "four rows and zeros"
    assert torch.equal(expected[3], rows[3].double()) and not expected[1].any()


def test_nothing_is_proved_on_a_cpu() -> None:
    assert gather_refusal(torch.empty(1), torch.empty(2, 8)) is None


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize(("prove", "reason"), [(True, "output 0 has"), (False, "captured")])
def test_a_refused_kernel_is_not_captured(
    prove: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are then tracked without a CUDA graph; with `prove=False` they are captured."""
    wrong = Implementation("gather_rows", "triton", zeros, lambda *_: None)
    monkeypatch.setattr(gather_rows, "_KERNEL", wrong)
    # A tape records the operators of torch only.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    monkeypatch.setattr(FrameGraph, "run", fail_capture)
    monkeypatch.setattr(graphs, "Recorder", TapeRecorder)
    monkeypatch.setattr(ahead, "SideStream", NoSideStream)
    predictor = small_predictor()
    predictor.prove = prove
    predictor.graphs = UnconditionalGraphs()
    with pytest.warns(RuntimeWarning) as record:
        masks = list(short_session(predictor))
    texts = [str(warning.message) for warning in record]
    assert any("could not capture a CUDA graph of a tracked frame" in text for text in texts)
    assert any("kernel of gather_rows" in text for text in texts) == prove
    refused = predictor.graphs.refused
    assert refused and {key[0] for key in refused} == {"track"}
    assert all(reason in why for why in refused.values()), refused
    predictor.graphs = None
    for a, b in zip(masks, short_session(predictor), strict=True):
        assert torch.equal(a, b)


def zeros(rows: torch.Tensor, numbers: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(len(numbers), rows.shape[1], dtype=dtype)


def fail_capture(graph: FrameGraph) -> None:
    raise RuntimeError("captured")
