"""Models and proofs: who asks for them, and frames that are recorded only with proven kernels."""

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
from sam2_fast.recording.cache import Graphs
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.registered import set_absence
from tests.proving.toy import CARD
from tests.video.recorded import NoSideStream, frames, small_predictor
from tests.video.tape import TapeRecorder

CPU = torch.device("cpu")


class Willing(Graphs):
    """Graphs that do not mind the CPU."""

    def refuses(self, *_: Any) -> None:
        return None


@pytest.fixture
def guarded(tmp_path: Path) -> Any:
    """Every kernel is gated, on the CPU."""
    with using(Gate(lambda *_: True, lambda _: CARD, lambda: tmp_path)) as gate:
        yield gate


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    set_absence(monkeypatch, "memory_attention", "triton", None)
    return small_predictor().to(torch.bfloat16)


class Eager(Willing):
    """Records no frame, and keeps what it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.lows: list[torch.Tensor] = []

    def refuses_frame(self, model: Any, low: torch.Tensor) -> str:
        self.lows.append(low)
        return "only noted"


class Noting(Gate):
    """Refuses all kernels, and keeps under which keys those of memory attention were met."""

    def __init__(self) -> None:
        super().__init__(lambda *_: True, lambda _: CARD)
        self.keys: list[Any] = []

    def refusal(self, kernel: Any, reference: Any, arguments: Any, named: Any) -> str:
        if (kernel.op, kernel.backend) == ("memory_attention", "triton"):
            self.keys.append(self.key(kernel, Call(arguments, named)))
        return "only noted"


def attended(predictor: SAM2VideoPredictor, patch: pytest.MonkeyPatch) -> tuple[Any, torch.Tensor]:
    """The key of memory attention in a tracked frame, and the features that are asked about."""
    place = ("memory_attention", "triton")
    taking = registry.Implementation(*place, triton_attention, lambda *_: None)
    predictor.graphs = eager = Eager()
    with patch.context() as changed, using(Noting()) as noting:
        changed.setitem(registry._implementations, place, taking)
        changed.setattr("sam2_fast.video.lookahead.SideStream", NoSideStream)
        state = predictor.init_state(frames(2))
        predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
        list(predictor.propagate_in_video(state))
    predictor.graphs = None
    return noting.keys[0], eager.lows[0]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_frame_is_recorded_only_with_memory_attention_that_is_proved(
    guarded: Gate, predictor: SAM2VideoPredictor, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if autocast:
        predictor = predictor.float()
    graphs = Willing()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.inference_mode():
        key, low = attended(predictor, monkeypatch)
        assert "not been proved" in (graphs.refuses_frame(predictor, low) or "")
        guarded.replace(CPU, {key: Verdict("memory_attention", "triton", "", None)}, [])
        assert graphs.refuses_frame(predictor, low) is None
        wrong = Verdict("memory_attention", "triton", "", "it is wrong")
        guarded.replace(CPU, {key: wrong}, [])
        assert graphs.refuses_frame(predictor, low) == "it is wrong"
        predictor.prove = False
        assert graphs.refuses_frame(predictor, low) is None


@torch.inference_mode()
def test_recordings_with_a_kernel_that_is_refused_later_are_dropped(
    guarded: Gate, predictor: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    graphs = Willing()
    key = ("hiera_block", "triton", CPU, None, ())
    guarded.replace(CPU, {key: Verdict("hiera_block", "triton", "", None)}, [])
    first, second = (torch.randn(n, 3, 64, 64, dtype=torch.bfloat16) for n in (1, 2))
    graphs.encode(predictor, first)
    graphs.encode(predictor, second)
    assert len(graphs) == 2
    guarded.replace(CPU, {key: Verdict("hiera_block", "triton", "", "wrong after all")}, [])
    graphs.encode(predictor, first)
    assert len(graphs) == 1


@pytest.mark.parametrize("build", [build_sam2, build_sam2_video_predictor])
def test_builders_take_prove(build: Any) -> None:
    assert build("nano", device="cpu", image_size=64).prove
    model = build("nano", device="cpu", image_size=64, prove=False)
    assert not model.prove and not pickle.loads(pickle.dumps(model)).prove
    assert "prove" not in " ".join(model.state_dict())


@pytest.mark.parametrize("prove", [True, False])
def test_a_model_s_methods_hold_to_it_and_nothing_else_is_changed(
    prove: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bool] = set()
    plain = registry._choose

    def noting(op: str, *rest: Any) -> Any:
        if op in ("hiera_block", "mask_decoder", "memory_attention", "memory_encoder"):
            seen.add(enabled())
        return plain(op, *rest)

    monkeypatch.setattr(registry, "_choose", noting)
    predictor = small_predictor()
    predictor.prove = prove
    state = predictor.init_state(frames(2))
    predictor.add_new_points_or_box(state, 0, 1, points=[[20.0, 30.0]], labels=[1])
    masks = [m for _, _, m in predictor.propagate_in_video(state)]
    assert len(masks) == 2 and np.isfinite(masks[1].numpy()).all()
    assert seen == {prove} and enabled()
