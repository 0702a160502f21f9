"""Models and proofs: the option `prove`, and frames that are captured only with proved kernels."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast import build_sam2, build_sam2_video_predictor
from sam2_fast.ops.core import registry
from sam2_fast.ops.memory_attention.triton_kernels import triton_attention
from sam2_fast.proving.gate import Gate, using
from sam2_fast.proving.rules import Call
from sam2_fast.proving.store import Verdict
from sam2_fast.proving.switch import enabled
from sam2_fast.recording import cache as graphs_module
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.registered import set_absence
from tests.proving.toy import CARD
from tests.video.sessions import NoSideStream, frames, small_predictor
from tests.video.tape import GraphsOnCpu, TapeRecorder

CPU = torch.device("cpu")


@pytest.fixture
def gate_of_all_kernels(tmp_path: Path) -> Any:
    """A gate that guards every kernel on every device."""
    with using(Gate(lambda *_: True, lambda _: CARD, lambda: tmp_path)) as gate:
        yield gate


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    set_absence(monkeypatch, "memory_attention", "triton", None)
    return small_predictor().to(torch.bfloat16)


class FrameRefusingGraphs(GraphsOnCpu):
    """Graphs that capture no tracked frame, and collect the features of those they refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[torch.Tensor] = []

    def refuses_frame(self, model: Any, low: torch.Tensor) -> str:
        self.features.append(low)
        return "tracked frames are refused"


class KeyCollectingGate(Gate):
    """A gate that refuses all kernels, and collects the keys of calls of memory attention."""

    def __init__(self) -> None:
        super().__init__(lambda *_: True, lambda _: CARD)
        self.keys: list[Any] = []

    def refusal(self, kernel: Any, reference: Any, arguments: Any, named: Any) -> str:
        if (kernel.op, kernel.backend) == ("memory_attention", "triton"):
            self.keys.append(self.key(kernel, Call(arguments, named)))
        return "all kernels are refused"


def track_a_frame(
    predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, torch.Tensor]:
    """Track a frame; returns the key of memory attention in it, and the features of the frame."""
    name = ("memory_attention", "triton")
    implementation = registry.Implementation(*name, triton_attention, lambda *_: None)
    predictor.graphs = graphs = FrameRefusingGraphs()
    with monkeypatch.context() as patch, using(KeyCollectingGate()) as gate:
        patch.setitem(registry._implementations, name, implementation)
        patch.setattr("sam2_fast.video.lookahead.SideStream", NoSideStream)
        state = predictor.init_state(frames(2))
        predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
        list(predictor.propagate_in_video(state))
    predictor.graphs = None
    return gate.keys[0], graphs.features[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_frame_is_captured_only_if_memory_attention_was_proved(
    gate_of_all_kernels: Gate,
    predictor: SAM2VideoPredictor,
    autocast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if autocast:
        predictor = predictor.float()
    graphs = GraphsOnCpu()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.inference_mode():
        key, low = track_a_frame(predictor, monkeypatch)
        assert "not been proved" in (graphs.refuses_frame(predictor, low) or "")
        correct = Verdict("memory_attention", "triton", "", None)
        gate_of_all_kernels.replace(CPU, {key: correct}, [])
        assert graphs.refuses_frame(predictor, low) is None
        wrong = Verdict("memory_attention", "triton", "", "it is wrong")
        gate_of_all_kernels.replace(CPU, {key: wrong}, [])
        assert graphs.refuses_frame(predictor, low) == "it is wrong"
        predictor.prove = False
        assert graphs.refuses_frame(predictor, low) is None


@torch.inference_mode()
def test_cuda_graphs_are_dropped_if_a_kernel_is_refused_later(
    gate_of_all_kernels: Gate, predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    graphs = GraphsOnCpu()
    key = ("hiera_block", "triton", CPU, None, ())
    gate_of_all_kernels.replace(CPU, {key: Verdict("hiera_block", "triton", "", None)}, [])
    first, second = (torch.randn(n, 3, 64, 64, dtype=torch.bfloat16) for n in (1, 2))
    graphs.encode(predictor, first)
    graphs.encode(predictor, second)
    assert len(graphs) == 2
    wrong = Verdict("hiera_block", "triton", "", "it is wrong")
    gate_of_all_kernels.replace(CPU, {key: wrong}, [])
    graphs.encode(predictor, first)
    assert len(graphs) == 1


@pytest.mark.parametrize("build", [build_sam2, build_sam2_video_predictor])
def test_builders_have_the_option_prove(build: Any) -> None:
    assert build("nano", device="cpu", image_size=64).prove
    model = build("nano", device="cpu", image_size=64, prove=False)
    assert not model.prove and not pickle.loads(pickle.dumps(model)).prove
    assert "prove" not in " ".join(model.state_dict())


@pytest.mark.parametrize("prove", [True, False])
def test_the_option_applies_to_the_methods_of_its_model_only(
    prove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled_in_model: set[bool] = set()
    original = registry._choose

    def choose(op: str, *rest: Any) -> Any:
        if op in ("hiera_block", "mask_decoder", "memory_attention", "memory_encoder"):
            enabled_in_model.add(enabled())
        return original(op, *rest)

    monkeypatch.setattr(registry, "_choose", choose)
    predictor = small_predictor()
    predictor.prove = prove
    state = predictor.init_state(frames(2))
    predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    masks = [m for _, _, m in predictor.propagate_in_video(state)]
    assert len(masks) == 2 and np.isfinite(masks[1].numpy()).all()
    assert enabled_in_model == {prove} and enabled()
