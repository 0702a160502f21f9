"""The kernel that gathers what objects remember proves itself before a frame is captured."""

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
from tests.video.failing import Willing
from tests.video.recorded import NoSideStream, brief, small_predictor
from tests.video.tape import TapeRecorder

PROGRAM = """
from pathlib import Path
from tempfile import TemporaryDirectory
from sam2_fast.kernels import memory_attention as kernels
from sam2_fast.ops.memory_attention.gather_rows import gather_refusal
from sam2_fast.proving import case
from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import CARD

case.milliseconds = lambda *_: 1.0  # an interpreter's time says nothing
plain = kernels.gather_rows


def shifted(addresses, like, out):
    plain(addresses, like, out)
    out.copy_(out.roll(1, 0))


def nothing_is_zero(addresses, like, out):
    plain(addresses, like, out)
    out[addresses == 0] = 1


KINDS = (torch.float32, torch.bfloat16, torch.float16)
for wrong in (None, shifted, nothing_is_zero):
    kernels.gather_rows = wrong or plain
    with TemporaryDirectory() as directory:
        gate = Gate(lambda backend, _: backend == "triton", lambda _: CARD, lambda: Path(directory))
        with using(gate):
            for like in KINDS:
                for dtype in (torch.bfloat16, torch.float16):
                    out = torch.empty(3, 48, dtype=dtype)
                    reason = gather_refusal(torch.empty(1, dtype=like), out)
                    assert (reason is None) == (wrong is None), (wrong, like, dtype, reason)
        verdicts = gate.cache.contents(torch.device("cpu")).verdicts.values()
        assert {v.op for v in verdicts} == {"gather_rows"} and len(verdicts) == 6, verdicts
"""


def test_it_is_proved_and_a_wrong_one_is_refused() -> None:
    pytest.importorskip("triton")
    interpret(PROGRAM)


def test_a_proof_tells_rows_apart() -> None:
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
    """Frames are tracked without a recording then; `prove=False` captures all the same."""
    wrong = Implementation("gather_rows", "triton", zeros, lambda *_: None)
    monkeypatch.setattr(gather_rows, "_KERNEL", wrong)
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)  # a tape sees torch alone
    monkeypatch.setattr(FrameGraph, "run", capture)
    monkeypatch.setattr(graphs, "Recorder", TapeRecorder)
    monkeypatch.setattr(ahead, "SideStream", NoSideStream)
    predictor = small_predictor()
    predictor.prove, predictor.graphs = prove, Willing()
    with pytest.warns(RuntimeWarning) as seen:
        found = list(brief(predictor))
    texts = [str(warning.message) for warning in seen]
    assert any("could not capture a CUDA graph of a tracked frame" in text for text in texts)
    assert any("kernel of gather_rows" in text for text in texts) == prove
    refused = predictor.graphs.refused
    assert refused and {key[0] for key in refused} == {"track"}
    assert all(reason in why for why in refused.values()), refused
    predictor.graphs = None
    for a, b in zip(found, brief(predictor), strict=True):
        assert torch.equal(a, b)


def zeros(rows: torch.Tensor, numbers: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(len(numbers), rows.shape[1], dtype=dtype)


def capture(graph: FrameGraph) -> None:
    raise RuntimeError("captured")
