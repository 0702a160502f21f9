"""That the host waits for nothing while a frame is tracked: on tensors without numbers, whoever
looks at one is caught.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sam2_fast.config import Options, Sam2Config
from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.model import Sam2
from sam2_fast.ops.core import transfer
from sam2_fast.ops.core.transfer import upload, upload_numbers
from sam2_fast.types import FrameMemory, Points
from sam2_fast.video.session import ObjectTrack, StreamFrames, VideoSession
from sam2_fast.video.tracker import Tracker

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(2,), windows=(8, 4, 4, 2), image_size=64
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose tensors have shapes and no numbers. `.item()`, `bool(x)` and `x.nonzero()`
    raise.
    """
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield Sam2(SMALL, Options()).eval()


def session_of(model: Sam2, objects: int) -> VideoSession:
    cpu, frames = torch.device("cpu"), StreamFrames()
    for _ in range(3):
        frames.push(np.zeros((60, 80, 3), np.uint8))
    session = VideoSession(frames, cpu, cpu)
    for i in range(objects):
        track = ObjectTrack()
        track.bank.prompted[i % 2] = FrameMemory(
            torch.zeros(256), torch.zeros(1), torch.zeros(16, 64), torch.zeros(1, 16, 16)
        )
        session.objects[i] = track
    session.features.current = (2, model.encode_image(torch.zeros(1, 3, 64, 64)))
    return session


def test_whoever_looks_at_a_number_is_caught(model: Sam2) -> None:
    with pytest.raises(DataDependentOutputException):
        bool(torch.zeros(3).any())


@pytest.mark.parametrize("objects", [1, 3, 20])
def test_a_tracked_frame_looks_at_no_number(
    model: Sam2, objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, sent = session_of(model, objects), []
    monkeypatch.setattr(
        transfer,
        "upload",
        lambda tensor, device: sent.append(tuple(tensor.shape)) or tensor.to(device),
    )
    plain = torch.tensor
    monkeypatch.setattr(
        torch,
        "tensor",
        lambda *a, **k: (
            pytest.fail("a list goes to the device past upload")
            if "device" in k
            else plain(*a, **k)
        ),
    )
    assert Tracker(model).track_frame(session, 2, 1).shape == (objects, 1, 16, 16)
    assert len(sent) == -(-objects // 16), "the ages of pointers, once a pass"


def test_a_click_on_an_image_looks_at_no_number(model: Sam2) -> None:
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    points = Points(torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.int32))
    found = model.decode(model.without_memory(features.low), features, points, None, True)
    assert found.logits.shape == (2, 3, 16, 16)


def test_what_is_sent_arrives() -> None:
    numbers: Tensor = upload_numbers([[1, 2], [3, 4]], torch.int64, "cpu")
    assert numbers.tolist() == [[1, 2], [3, 4]] and upload(numbers, "cpu") is numbers


@pytest.mark.gpu
def test_what_is_sent_to_a_gpu_arrives_in_the_order_of_the_stream() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sent = [upload(torch.full((1 << 20,), float(i)), "cuda") for i in range(20)]
        sums = torch.stack([x.sum() for x in sent])
    stream.synchronize()
    assert sums.tolist() == [float(i) * (1 << 20) for i in range(20)]


class CrossingError(Exception):
    """The one place where numbers go to the host."""


def test_automatic_masks_look_at_no_number_before_their_runs(
    model: Sam2, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[int, ...]] = []

    def crossing(logits: Tensor, *_: Any, keep: Any, which: Tensor, **__: Any) -> None:
        counts, boxes = (torch.zeros(len(logits), *more, dtype=torch.int64) for more in ((), (4,)))
        judged.extend((which.shape, keep(counts, counts, boxes).shape))
        raise CrossingError

    monkeypatch.setattr("sam2_fast.image.automatic.mask_postprocess", crossing)
    monkeypatch.setattr("sam2_fast.image.automatic._on_accelerator", lambda device: True)
    # A kernel on a GPU.
    monkeypatch.setattr(
        "sam2_fast.image.automatic.nms", lambda boxes, scores, threshold, alive: alive
    )
    generator = SAM2AutomaticMaskGenerator(
        model, points_per_side=2, points_per_batch=3, pred_iou_thresh=0.5
    )
    generator.predictor.set_image(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(CrossingError):
        generator._process_crop(0, [0, 0, 80, 60], 0, (60, 80))
    assert judged == [(12,), (12,)], "of all clicks of the crop, at once"
