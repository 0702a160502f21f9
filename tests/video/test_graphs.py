"""CUDA graphs give bit-exact masks for any memories and any edits between frames."""

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
from tests.video.sessions import edited_session, frames, small_predictor
from tests.video.tape import GraphsOnCpu, TapeRecorder

PROGRAM = """
from tests.video.sessions import (
    edited_session,
    run_in_triton,
    short_session,
    small_predictor,
    use_recorder,
)
from tests.video.tape import EagerRecorder, TapeRecorder, record_launches

run_in_triton({ops})
record_launches()
eager = list({session}(use_recorder(small_predictor(), EagerRecorder)))
replayed = list({session}(use_recorder(small_predictor(), TapeRecorder)))
assert len(eager) == len(replayed) == {masks}, len(eager)
for i, (a, b) in enumerate(zip(eager, replayed)):
    assert a.isfinite().all() and torch.equal(a, b), i
assert TapeRecorder.captures < 10, TapeRecorder.captures
without_graphs = small_predictor()
without_graphs.graphs = None
for i, (a, b) in enumerate(zip({session}(without_graphs), replayed)):
    assert (a - b).abs().max() < 1e-3, (i, (a - b).abs().max())
"""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SAM2VideoPredictor:
    """A predictor on the CPU whose CUDA graphs are tapes."""
    monkeypatch.setattr(graphs_module, "Recorder", TapeRecorder)
    # A tape records the operators of torch only.
    monkeypatch.setattr("sam2_fast.ops.core.native.native", lambda: None)
    return small_predictor()


def images(seed: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def encodes_equally(predictor: Any, graphs: Graphs, seed: int, count: int = 1) -> bool:
    """Whether images are encoded as without CUDA graphs."""
    x = images(seed, count)
    return all(map(torch.equal, graphs.encode(predictor, x), predictor.encode_image(x)))


def image_predictors(model: SAM2VideoPredictor) -> tuple[SAM2ImagePredictor, SAM2ImagePredictor]:
    """Two predictors of the model, with CUDA graphs and without."""
    with_graphs = SAM2ImagePredictor(model)
    with_graphs.graphs = GraphsOnCpu()
    eager = SAM2ImagePredictor(model)
    eager.graphs = None
    return with_graphs, eager


@pytest.mark.timeout(900)  # minutes of Triton's interpreter on a machine with other work
@pytest.mark.parametrize(
    ("session", "masks", "ops"),
    [
        ("edited_session", 11, ["memory_attention"]),
        ("short_session", 3, ["memory_attention", "mask_decoder", "memory_encoder"]),
    ],
    ids=["memory attention", "the whole frame"],
)
def test_replayed_frames_are_bitwise_equal_to_those_of_the_function(
    session: str, masks: int, ops: list[str]
) -> None:
    pytest.importorskip("triton")
    program = PROGRAM.replace("{session}", session).replace("{masks}", str(masks))
    interpret(program.replace("{ops}", ", ".join(map(repr, ops))))


@torch.inference_mode()
def test_a_graph_encodes_new_images_and_keeps_earlier_results(model: SAM2VideoPredictor) -> None:
    graphs = Graphs()
    first = graphs.encode(model, images(0))
    copies = [x.clone() for x in first]
    assert encodes_equally(model, graphs, 1) and encodes_equally(model, graphs, 2)
    assert len(graphs) == 1
    assert all(map(torch.equal, first, copies)), "an earlier result was overwritten"
    assert encodes_equally(model, graphs, 3, count=2)
    assert len(graphs) == 2


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("boxes", [False, True])
def test_prompts_are_captured_when_their_shape_occurs_again(
    model: SAM2VideoPredictor, multimask: bool, boxes: bool
) -> None:
    with_graphs, eager = image_predictors(model)
    picture = frames(1)[0]
    for predictor in (with_graphs, eager):
        predictor.set_image(picture)
    hint = None
    for i in range(5):
        if i == 3:
            for predictor in (with_graphs, eager):
                predictor.set_image(picture[::-1].copy())
        prompt = {"point_coords": [[10.0 + 9 * i, 30.0]], "point_labels": [i % 2]}
        if boxes:
            prompt = {"box": [3.0 + i, 4.0, 50.0, 40.0]}
        actual, expected = (
            p.predict(**prompt, mask_input=hint, multimask_output=multimask)
            for p in (with_graphs, eager)
        )
        assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True)), i
        # The encoder, prompts without a hint, prompts with a hint.
        assert len(with_graphs.graphs) == 1 + (i > 0) + (i > 2)
        hint = expected[2][:1] if i else None


def test_images_of_a_batch_are_decoded_by_a_cuda_graph(model: SAM2VideoPredictor) -> None:
    with_graphs, eager = image_predictors(model)
    for predictor in (with_graphs, eager):
        predictor.set_image_batch(list(frames(3)))
    for i in range(3):
        clicks = [[[10.0 + 5 * i, 20.0]], [[30.0, 20.0 + i]], [[5.0, 9.0 * i]]]
        actual, expected = (p.predict_batch(clicks, [[1], [0], [1]]) for p in (with_graphs, eager))
        for a, b in zip(actual, expected, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(with_graphs.graphs) == 2


@pytest.mark.parametrize("change", ["in place", "replaced", "module", "dtype", "moved"])
@torch.no_grad()
def test_work_is_captured_again_after_weights_have_changed(
    model: SAM2VideoPredictor, change: str
) -> None:
    graphs = Graphs()
    trunk = model.image_encoder.trunk
    before = graphs.encode(model, images(0)).low
    if change == "in place":
        trunk.blocks[0].mlp.layers[0].weight.mul_(1.5)
    if change == "replaced":
        trunk.pos_embed = torch.nn.Parameter(trunk.pos_embed + 1.0)
    if change == "module":
        trunk.blocks[1] = copy.deepcopy(trunk.blocks[1]).requires_grad_(False)
        trunk.blocks[1].norm1.bias.add_(1.0)
    if change == "dtype":
        model.double()
    if change == "moved":
        model.load_state_dict({k: v + 0.01 for k, v in model.state_dict().items()}, assign=True)
    assert encodes_equally(model, graphs, 0) and encodes_equally(model, graphs, 1)
    assert len(graphs) == 1
    assert not torch.equal(graphs.encode(model, images(0)).low, before)


@torch.inference_mode()
def test_the_number_of_cuda_graphs_is_bounded(
    model: SAM2VideoPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_GRAPHS", 2)
    graphs = Graphs()
    for count in (1, 2, 3, 1):
        assert encodes_equally(model, graphs, count, count)
    assert len(graphs) == 2


@torch.inference_mode()
def test_large_batches_are_not_captured(model: SAM2VideoPredictor) -> None:
    graphs = Graphs()
    assert encodes_equally(model, graphs, 0, graphs_module.MAX_IMAGES + 1) and len(graphs) == 0
    features = model.encode_image(images(0))
    for count, recorded in ((graphs_module.MAX_PROMPTS + 1, 0), (graphs_module.MAX_PROMPTS, 1)):
        points = Points(torch.rand(count, 1, 2) * 64, torch.ones(count, 1, dtype=torch.int32))
        for _ in range(2):
            masks = graphs.decode(model, features.low, features, points, None, True)
        expected = model.decode(features.low, features, points, None, True)
        assert torch.equal(masks.logits, expected.logits)
        assert len(graphs) == recorded


def test_copies_of_a_predictor_have_no_cuda_graphs(model: SAM2VideoPredictor) -> None:
    model.graphs = Graphs()
    with torch.inference_mode():
        model.graphs.encode(model, images(0))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.graphs, Graphs) and len(other.graphs) == 0
    assert len(model.graphs) == 1


def test_reasons_not_to_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = small_predictor()
    graphs = Graphs()
    x = images(0)
    assert "on cpu, CUDA graphs need a cuda device" in (graphs.refuses(predictor, x) or "")
    assert "the compute dtype is torch.float32" in (graphs.refuses_frame(predictor, x) or "")

    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert "gradients are enabled" in (graphs.refuses(predictor, on_gpu) or "")
    with torch.inference_mode():
        assert graphs.refuses(predictor, on_gpu) is None
        handle = predictor.sam_mask_decoder.register_forward_hook(lambda *_: None)
        assert "it has a hook" in (graphs.refuses(predictor, on_gpu) or "")
        handle.remove()
        predictor.decode = predictor.decode
        reason = graphs.refuses(predictor, on_gpu) or ""
        assert "decode of the model has been overridden" in reason


def test_weights_whose_writes_cannot_be_detected_prevent_captures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class SubclassedParameter(torch.nn.Parameter):
        pass

    predictor = small_predictor()
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with torch.inference_mode():
        assert Graphs().refuses(predictor, on_gpu) is None
        predictor.no_mem_pos_enc = SubclassedParameter(predictor.no_mem_pos_enc.detach().clone())
        reason = Graphs().refuses(predictor, on_gpu)
    assert reason is not None and "tensor subclass" in reason


def test_a_fingerprint_references_each_object_once() -> None:
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
def test_replayed_frames_are_bitwise_equal_to_those_of_the_function_on_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    from tests.video.tape import EagerRecorder

    predictor = small_predictor().to("cuda", dtype)
    first = list(edited_session(predictor))
    assert predictor.graphs is not None and len(predictor.graphs) > 1
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        second = list(edited_session(predictor))
    stream.synchronize()
    monkeypatch.setattr(graphs_module, "Recorder", EagerRecorder)
    predictor.graphs = Graphs()
    eager = list(edited_session(predictor))
    for a, b, c in zip(first, second, eager, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and a.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_replayed_clicks_are_bitwise_equal_to_those_of_the_function_on_a_gpu(
    dtype: torch.dtype,
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    gpu_model = small_predictor().to("cuda", dtype)
    with_graphs = SAM2ImagePredictor(gpu_model)
    eager = SAM2ImagePredictor(gpu_model)
    eager.graphs = None
    for i in range(4):
        for predictor in (with_graphs, eager):
            predictor.set_image(frames(4)[i])
        for x in (10.0, 30.0, 50.0):
            actual, expected = (p.predict([[x, 30.0]], [1]) for p in (with_graphs, eager))
            for a, b in zip(actual, expected, strict=True):
                assert np.array_equal(a, b) and np.isfinite(a).all()
    assert with_graphs.graphs is not None and len(with_graphs.graphs) == 2


def test_the_options_of_another_decoder_are_part_of_the_key_of_a_graph() -> None:
    predictor = small_predictor()
    before = graphs_module._options_key(predictor)
    predictor.sam_mask_decoder = copy.deepcopy(predictor.sam_mask_decoder)
    assert graphs_module._options_key(predictor) == before
    predictor.sam_mask_decoder.dynamic_multimask_stability_delta = 0.5
    assert predictor.options.dynamic_multimask_stability_delta == 0.05
    assert graphs_module._options_key(predictor) != before
