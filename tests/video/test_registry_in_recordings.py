"""What the registry of ops says holds inside recordings: an op that is left out is not replayed
either.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cache import Graphs
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.registered import set_absence
from tests.video.failing import FailingRecorder, Willing
from tests.video.recorded import brief, small_predictor
from tests.video.tape import TapeRecorder

TRITON = ("memory_attention", "triton")


class Encoding(Graphs):
    """Graphs that do not mind the CPU, which lets nothing but the registry refuse a frame in
    bfloat16.
    """

    def refuses(self, *_: Any) -> None:
        return None


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    set_absence(monkeypatch, *TRITON, None)  # as where there is a GPU
    return small_predictor()


def refusal(predictor: SAM2VideoPredictor) -> str | None:
    narrow = predictor.to(torch.bfloat16)
    return Encoding().refuses_frame(narrow, torch.zeros(1, 256, 4, 4))


def test_a_frame_is_recorded_where_the_registry_chooses_triton(
    predictor: SAM2VideoPredictor,
) -> None:
    assert refusal(predictor) is None


@pytest.mark.parametrize("way", ["absent", "replaced", "removed", "preceded"])
def test_a_frame_is_not_recorded_where_it_does_not(
    predictor: SAM2VideoPredictor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Implementation(*TRITON, memory_attention_reference, lambda *_: None)
    if way == "absent":
        set_absence(monkeypatch, *TRITON, "left out")
    if way == "replaced":
        monkeypatch.setitem(registry._implementations, TRITON, other)
    if way == "removed":
        monkeypatch.delitem(registry._implementations, TRITON)
    if way == "preceded":
        monkeypatch.setitem(registry._implementations, (TRITON[0], "cuda"), other)
    assert "not in Triton" in (refusal(predictor) or "")


@torch.inference_mode()
def test_recordings_of_other_implementations_are_dropped(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, images = Encoding(), torch.randn(1, 3, 64, 64)
    before = graphs.encode(predictor, images).low
    held: list[int] = []
    monkeypatch.setattr(TapeRecorder, "finish", lambda self: held.append(len(graphs)))
    key = ("hiera_block", "torch")
    torchs = registry._implementations[key]
    doubled = Implementation(*key, lambda *given: 2 * torchs.run(*given), torchs.refuses)
    with monkeypatch.context() as patch:
        patch.setitem(registry._implementations, key, doubled)
        found = graphs.encode(predictor, images).low
        assert torch.equal(found, predictor.encode_image(images).low) and not torch.equal(
            found, before
        )
        assert len(graphs) == 1
    assert held == [1], "memory of recordings is freed when the device has finished with it"
    assert torch.equal(graphs.encode(predictor, images).low, before)


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
@torch.inference_mode()
def test_refused_keys_are_tried_again_with_other_implementations(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "Recorder", FailingRecorder)
    monkeypatch.setattr(FailingRecorder, "attempts", 0)
    monkeypatch.setattr(FailingRecorder, "fails", staticmethod(lambda attempt: attempt == 0))
    graphs, images = Willing(), torch.randn(1, 3, 64, 64)
    graphs.encode(predictor, images)
    assert len(graphs.refused) == 1 and len(graphs) == 0
    set_absence(monkeypatch, *TRITON, "left out")
    graphs.encode(predictor, images)
    assert len(graphs.refused) == 0 and len(graphs) == 1


@pytest.mark.gpu
def test_triton_that_is_left_out_runs_in_no_tracked_frame_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    predictor = small_predictor().to("cuda", torch.bfloat16)
    list(brief(predictor))
    assert predictor.graphs is not None
    assert any(key[0] == "track" for key in predictor.graphs._entries)
    set_absence(monkeypatch, *TRITON, "left out")

    def forbidden(*_: Any, **__: Any) -> None:
        pytest.fail("memory attention runs in Triton")

    monkeypatch.setattr("sam2_fast.model.memory_attention.memory_attention_at", forbidden)
    found = list(brief(predictor))
    assert not any(key[0] == "track" for key in predictor.graphs._entries)
    predictor.graphs = None
    for a, b in zip(found, brief(predictor), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
