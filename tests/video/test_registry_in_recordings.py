"""CUDA graphs follow the registry of ops: an implementation that is left out is not replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sam2_fast.ops.core import registry
from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import Implementation
from sam2_fast.ops.memory_attention.reference import memory_attention_reference
from sam2_fast.recording import cache as graphs_module
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.registered import set_absence
from tests.video.failing import FailingRecorder
from tests.video.sessions import short_session, small_predictor
from tests.video.tape import GraphsOnCpu, TapeRecorder, UnconditionalGraphs

TRITON = ("memory_attention", "triton")


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    set_absence(monkeypatch, *TRITON, None)  # as on a machine with a GPU
    return small_predictor()


def refusal(predictor: SAM2VideoPredictor) -> str | None:
    """Why a frame is not captured in bfloat16; only the registry can refuse it."""
    features = torch.zeros(1, 256, 4, 4)
    return GraphsOnCpu().refuses_frame(predictor.to(torch.bfloat16), features)


def test_a_frame_is_captured_if_the_registry_selects_triton(predictor: SAM2VideoPredictor) -> None:
    assert refusal(predictor) is None


@pytest.mark.parametrize("change", ["absent", "replaced", "removed", "preceded"])
def test_a_frame_is_not_captured_if_the_registry_selects_another_backend(
    predictor: SAM2VideoPredictor, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Implementation(*TRITON, memory_attention_reference, lambda *_: None)
    if change == "absent":
        set_absence(monkeypatch, *TRITON, "left out")
    if change == "replaced":
        monkeypatch.setitem(registry._implementations, TRITON, other)
    if change == "removed":
        monkeypatch.delitem(registry._implementations, TRITON)
    if change == "preceded":
        monkeypatch.setitem(registry._implementations, (TRITON[0], "cuda"), other)
    assert "not in Triton" in (refusal(predictor) or "")


@torch.inference_mode()
def test_cuda_graphs_of_other_implementations_are_dropped(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = GraphsOnCpu()
    images = torch.randn(1, 3, 64, 64)
    before = graphs.encode(predictor, images).low
    counts: list[int] = []  # of graphs, whenever the device is synchronised
    monkeypatch.setattr(TapeRecorder, "synchronize", lambda self: counts.append(len(graphs)))
    key = ("hiera_block", "torch")
    original = registry._implementations[key]
    doubled = Implementation(*key, lambda *inputs: 2 * original.run(*inputs), original.refuses)
    with monkeypatch.context() as patch:
        patch.setitem(registry._implementations, key, doubled)
        features = graphs.encode(predictor, images).low
        assert torch.equal(features, predictor.encode_image(images).low)
        assert not torch.equal(features, before)
        assert len(graphs) == 1
    assert counts == [1], "the graph is freed after the device has finished"
    assert torch.equal(graphs.encode(predictor, images).low, before)


@pytest.mark.filterwarnings("ignore:sam2_fast could not capture")
@torch.inference_mode()
def test_refused_keys_are_tried_again_with_other_implementations(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "Recorder", FailingRecorder)
    monkeypatch.setattr(FailingRecorder, "attempts", 0)
    monkeypatch.setattr(FailingRecorder, "fails", staticmethod(lambda attempt: attempt == 0))
    graphs = UnconditionalGraphs()
    images = torch.randn(1, 3, 64, 64)
    graphs.encode(predictor, images)
    assert len(graphs.refused) == 1 and len(graphs) == 0
    set_absence(monkeypatch, *TRITON, "left out")
    graphs.encode(predictor, images)
    assert len(graphs.refused) == 0 and len(graphs) == 1


@pytest.mark.gpu
def test_tracked_frames_do_not_run_triton_if_it_is_left_out_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    predictor = small_predictor().to("cuda", torch.bfloat16)
    list(short_session(predictor))
    assert predictor.graphs is not None
    assert any(key[0] == "track" for key in predictor.graphs._entries)
    set_absence(monkeypatch, *TRITON, "left out")

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("memory attention runs in Triton")

    monkeypatch.setattr("sam2_fast.model.memory_attention.memory_attention_at", fail)
    masks = list(short_session(predictor))
    assert not any(key[0] == "track" for key in predictor.graphs._entries)
    predictor.graphs = None
    for a, b in zip(masks, short_session(predictor), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
