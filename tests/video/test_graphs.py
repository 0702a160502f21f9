"""Frames from recordings: the same masks to the bit, whatever objects remember and whatever the
user does between frames.
"""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sam2_fast.image.predictor import SAM2ImagePredictor
from sam2_fast.model.layers import cached_values
from sam2_fast.ops.core.native import no_triton
from sam2_fast.recording import cache as graphs_module
from sam2_fast.recording.cache import Graphs
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.types import Points
from sam2_fast.video.predictor import SAM2VideoPredictor
from tests.ops.triton_tools import interpret
from tests.video.recorded import edited, frames, small_predictor
from tests.video.tape import TapeRecorder

PROGRAM = """
from tests.video.recorded import brief, edited, on_triton, recorded, small_predictor
from tests.video.tape import PlainRecorder, TapeRecorder, record_launches

on_triton({ops})
record_launches()
plain = list({session}(recorded(small_predictor(), PlainRecorder)))
taped = list({session}(recorded(small_predictor(), TapeRecorder)))
assert len(plain) == len(taped) == {masks}, len(plain)
for i, (a, b) in enumerate(zip(plain, taped)):
    assert a.isfinite().all() and torch.equal(a, b), i
assert TapeRecorder.recorded < 10, TapeRecorder.recorded
free = small_predictor()
free.graphs = None
for i, (a, b) in enumerate(zip({session}(free), taped)):
    assert (a - b).abs().max() < 1e-3, (i, (a - b).abs().max())
"""


class Willing(Graphs):
    """Graphs that do not mind the CPU."""

    def refuses(self, *_: Any) -> None:
        return None


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    """A predictor on the CPU whose encoder is recorded on tapes."""
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    # A tape sees torch's operators alone.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    return small_predictor()


def images(seed: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def encoded_alike(predictor: Any, graphs: Graphs, seed: int, count: int = 1) -> bool:
    x = images(seed, count)
    return all(
        torch.equal(a, b)
        for a, b in zip(graphs.encode(predictor, x), predictor.encode_image(x), strict=True)
    )


@pytest.mark.parametrize(
    ("session", "masks", "ops"),
    [
        ("edited", 11, ["memory_attention"]),
        ("brief", 3, ["memory_attention", "mask_decoder", "memory_encoder"]),
    ],
    ids=["memory attention", "the whole frame"],
)
def test_replayed_frames_are_those_of_the_function_to_the_bit(
    session: str, masks: int, ops: list[str]
) -> None:
    pytest.importorskip("triton")
    program = (
        PROGRAM.replace("{session}", session)
        .replace("{masks}", str(masks))
        .replace("{ops}", ", ".join(map(repr, ops)))
    )
    interpret(program)


@torch.inference_mode()
def test_a_recording_takes_new_images_and_results_stay(taped: SAM2VideoPredictor) -> None:
    graphs = Graphs()
    first = graphs.encode(taped, images(0))
    kept = [x.clone() for x in first]
    assert encoded_alike(taped, graphs, 1) and encoded_alike(taped, graphs, 2)
    assert len(graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True)), (
        "an earlier result was written over"
    )
    assert encoded_alike(taped, graphs, 3, count=2)
    assert len(graphs) == 2


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("boxes", [False, True])
def test_prompts_whose_shape_comes_again_are_recorded(
    taped: SAM2VideoPredictor, multimask: bool, boxes: bool
) -> None:
    clicker, plain = SAM2ImagePredictor(taped), SAM2ImagePredictor(taped)
    clicker.graphs, plain.graphs = Willing(), None
    picture = frames(1)[0]
    for predictor in (clicker, plain):
        predictor.set_image(picture)
    hint = None
    for i in range(5):
        if i == 3:
            for predictor in (clicker, plain):
                predictor.set_image(picture[::-1].copy())
        point = (
            {"box": [3.0 + i, 4.0, 50.0, 40.0]}
            if boxes
            else {"point_coords": [[10.0 + 9 * i, 30.0]], "point_labels": [i % 2]}
        )
        found, expected = (
            p.predict(**point, mask_input=hint, multimask_output=multimask)
            for p in (clicker, plain)
        )
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), i
        assert len(clicker.graphs) == 1 + (i > 0) + (i > 2), (
            "the encoder; prompts without a hint; with one"
        )
        hint = expected[2][:1] if i else None


def test_images_of_a_batch_are_decoded_from_a_recording(taped: SAM2VideoPredictor) -> None:
    clicker, plain = SAM2ImagePredictor(taped), SAM2ImagePredictor(taped)
    clicker.graphs, plain.graphs = Willing(), None
    for predictor in (clicker, plain):
        predictor.set_image_batch(list(frames(3)))
    for i in range(3):
        clicks = [[[10.0 + 5 * i, 20.0]], [[30.0, 20.0 + i]], [[5.0, 9.0 * i]]]
        found, expected = (p.predict_batch(clicks, [[1], [0], [1]]) for p in (clicker, plain))
        for a, b in zip(found, expected, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(clicker.graphs) == 2


@pytest.mark.parametrize("change", ["in place", "replaced", "module", "dtype", "moved"])
@torch.no_grad()
def test_recordings_follow_the_weights(taped: SAM2VideoPredictor, change: str) -> None:
    graphs, trunk = Graphs(), taped.image_encoder.trunk
    before = graphs.encode(taped, images(0)).low
    if change == "in place":
        trunk.blocks[0].mlp.layers[0].weight.mul_(1.5)
    if change == "replaced":
        trunk.pos_embed = torch.nn.Parameter(trunk.pos_embed + 1.0)
    if change == "module":
        trunk.blocks[1] = copy.deepcopy(trunk.blocks[1]).requires_grad_(False)
        trunk.blocks[1].norm1.bias.add_(1.0)
    if change == "dtype":
        taped.double()
    if change == "moved":
        taped.load_state_dict({k: v + 0.01 for k, v in taped.state_dict().items()}, assign=True)
    assert encoded_alike(taped, graphs, 0) and encoded_alike(taped, graphs, 1)
    assert len(graphs) == 1
    assert not torch.equal(graphs.encode(taped, images(0)).low, before)


@torch.inference_mode()
def test_the_number_of_recordings_is_bounded(
    taped: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 2)
    graphs = Graphs()
    for count in (1, 2, 3, 1):
        assert encoded_alike(taped, graphs, count, count)
    assert len(graphs) == 2


@torch.inference_mode()
def test_large_batches_are_not_recorded(taped: SAM2VideoPredictor) -> None:
    graphs = Graphs()
    assert encoded_alike(taped, graphs, 0, graphs_module.MAX_IMAGES + 1) and len(graphs) == 0
    features = taped.encode_image(images(0))
    for count, recorded in ((graphs_module.MAX_PROMPTS + 1, 0), (graphs_module.MAX_PROMPTS, 1)):
        points = Points(torch.rand(count, 1, 2) * 64, torch.ones(count, 1, dtype=torch.int32))
        for _ in range(2):
            found = graphs.decode(taped, features.low, features, points, None, True)
        assert torch.equal(
            found.logits, taped.decode(features.low, features, points, None, True).logits
        )
        assert len(graphs) == recorded


def test_copies_start_without_recordings(taped: SAM2VideoPredictor) -> None:
    taped.graphs = Graphs()
    with torch.inference_mode():
        taped.graphs.encode(taped, images(0))
    for other in (copy.deepcopy(taped), pickle.loads(pickle.dumps(taped))):
        assert isinstance(other.graphs, Graphs) and len(other.graphs) == 0
    assert len(taped.graphs) == 1


def test_says_why_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, graphs = small_predictor(), Graphs()
    x = images(0)
    assert "on cpu, CUDA graphs need a cuda device" in (graphs.refuses(predictor, x) or "")
    assert "the compute dtype is torch.float32" in (graphs.refuses_frame(predictor, x) or "")

    class OnGpu:
        device = torch.device("cuda")

    on_gpu: Any = OnGpu()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert "gradients are enabled" in (graphs.refuses(predictor, on_gpu) or "")
    with torch.inference_mode():
        assert graphs.refuses(predictor, on_gpu) is None
        handle = predictor.sam_mask_decoder.register_forward_hook(lambda *_: None)
        assert "forward hook" in (graphs.refuses(predictor, on_gpu) or "")
        handle.remove()
        predictor.decode = predictor.decode
        assert "decode of the model has been overridden" in (
            graphs.refuses(predictor, on_gpu) or ""
        )


def test_weights_whose_writes_cannot_be_seen_forbid_recordings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Watched(torch.nn.Parameter):
        pass

    predictor, on_gpu = small_predictor(), SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with torch.inference_mode():
        assert Graphs().refuses(predictor, on_gpu) is None
        predictor.no_mem_pos_enc = Watched(predictor.no_mem_pos_enc.detach().clone())
        reason = Graphs().refuses(predictor, on_gpu)
    assert reason is not None and "tensor subclass" in reason


def test_a_fingerprint_holds_each_object_once() -> None:
    predictor = small_predictor()
    with torch.no_grad():
        predictor.encode_image(images(0))
    fingerprint = Fingerprint(predictor)
    fingerprint.keep_alive(cached_values(predictor))
    once = len(fingerprint._referenced)
    fingerprint.keep_alive(cached_values(predictor))
    assert once > 0 and len(fingerprint._referenced) == once


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_recorded_on_a_gpu_are_those_of_the_function_to_the_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    from tests.video.tape import PlainRecorder

    recorded = list(edited(predictor := small_predictor().to("cuda", dtype)))
    assert predictor.graphs is not None and len(predictor.graphs) > 1
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        again = list(edited(predictor))
    stream.synchronize()
    monkeypatch.setattr(graphs_module, "Recorder", PlainRecorder)
    predictor.graphs = Graphs()
    plain = list(edited(predictor))
    for a, b, c in zip(recorded, again, plain, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and a.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_clicks_recorded_on_a_gpu_are_those_of_the_function_to_the_bit(dtype: torch.dtype) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    model = small_predictor().to("cuda", dtype)
    clicker, plain = SAM2ImagePredictor(model), SAM2ImagePredictor(model)
    plain.graphs = None
    for i in range(4):
        for predictor in (clicker, plain):
            predictor.set_image(frames(4)[i])
        for x in (10.0, 30.0, 50.0):
            found, expected = (p.predict([[x, 30.0]], [1]) for p in (clicker, plain))
            assert all(
                np.array_equal(a, b) and np.isfinite(a).all()
                for a, b in zip(found, expected, strict=True)
            )
    assert clicker.graphs is not None and len(clicker.graphs) == 2
