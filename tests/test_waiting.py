"""Tracking a frame does not synchronise the host with the device.

The tests use fake tensors, which have no values: every device-to-host copy raises.
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
from sam2_fast.memory import FrameMemory
from sam2_fast.model import Sam2
from sam2_fast.model.fusion import Fusion
from sam2_fast.ops.core import transfer
from sam2_fast.ops.core.transfer import upload, upload_numbers
from sam2_fast.types import Points
from sam2_fast.video.cached_features import CachedFeatures
from sam2_fast.video.finite import Verdict
from sam2_fast.video.frames import StreamFrames
from sam2_fast.video.inference_state import InferenceState, new_state
from sam2_fast.video.tracker import Tracker

SMALL = Sam2Config(
    embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(2,), windows=(8, 4, 4, 2), image_size=64
)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model with fake tensors, on which `.item()`, `bool(x)` and `x.nonzero()` raise."""
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield Sam2(SMALL, Options()).eval()


def session_of(model: Sam2, objects: int) -> InferenceState:
    cpu = torch.device("cpu")
    frames = StreamFrames()
    for _ in range(3):
        frames.push(np.zeros((60, 80, 3), np.uint8))
    session = new_state(frames, 64, cpu, cpu)
    for i in range(objects):
        session.add(i).bank.prompted[i % 2] = FrameMemory(
            torch.zeros(256), torch.zeros(1), torch.zeros(16, 64), torch.zeros(1, 16, 16)
        )
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    session["cached_features"][2] = CachedFeatures(features, model, frames, 2)
    return session


@pytest.fixture(params=["ops", "calls"], autouse=True)
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether ops compute the parts, whose definitions run on fake tensors, or they are called."""
    if request.param == "ops":
        monkeypatch.setattr(Fusion, "weights", lambda self, roots, gather, *_, **__: gather())
        monkeypatch.setattr(Fusion, "examined", lambda *_: object())
    return str(request.param)


@pytest.fixture(autouse=True)
def _answers_have_not_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whether results are finite is not known yet when a call asks for it."""
    monkeypatch.setattr(Verdict, "is_known", lambda self: False)


def test_a_host_synchronisation_raises(model: Sam2) -> None:
    with pytest.raises(DataDependentOutputException):
        bool(torch.zeros(3).any())


@pytest.mark.parametrize("objects", [1, 3, 20])
def test_tracking_a_frame_does_not_synchronise(
    model: Sam2, objects: int, computed_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(model, objects)
    uploads = []

    def record_upload(tensor: Tensor, device: Any) -> Tensor:
        uploads.append(tuple(tensor.shape))
        return tensor.to(device)

    original = torch.tensor

    def tensor_on_host(*arguments: Any, **options: Any) -> Tensor:
        assert "device" not in options, "a list is copied to the device without `upload`"
        return original(*arguments, **options)

    monkeypatch.setattr(transfer, "upload", record_upload)
    monkeypatch.setattr(torch, "tensor", tensor_on_host)
    assert Tracker(model).track_frame(session, 2, 1).shape == (objects, 1, 16, 16)
    passes = -(-objects // 16)
    if computed_by == "calls":  # objects with equal memories are one batch; here there are two
        passes *= min(objects, 2)
    assert len(uploads) == passes, "the ages of pointers, once in each pass"


def test_a_click_on_an_image_does_not_synchronise(model: Sam2) -> None:
    features = model.encode_image(torch.zeros(1, 3, 64, 64))
    points = Points(torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.int32))
    masks = model.decode(model.without_memory(features.low), features, points, None, True)
    assert masks.logits.shape == (2, 3, 16, 16)


def test_uploads_have_the_values_of_the_host() -> None:
    numbers: Tensor = upload_numbers([[1, 2], [3, 4]], torch.int64, "cpu")
    assert numbers.tolist() == [[1, 2], [3, 4]] and upload(numbers, "cpu") is numbers


@pytest.mark.gpu
def test_uploads_to_a_gpu_are_ordered_by_the_stream() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        uploads = [upload(torch.full((1 << 20,), float(i)), "cuda") for i in range(20)]
        sums = torch.stack([x.sum() for x in uploads])
    stream.synchronize()
    assert sums.tolist() == [float(i) * (1 << 20) for i in range(20)]


class DeviceToHostCopyError(Exception):
    """Raised at the only device-to-host copy, that of the run lengths of masks."""


def test_automatic_masks_do_not_synchronise_before_their_run_lengths_are_copied(
    model: Sam2, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def postprocess(logits: Tensor, *_: Any, keep: Any, which: Tensor, **__: Any) -> None:
        counts, boxes = (torch.zeros(len(logits), *more, dtype=torch.int64) for more in ((), (4,)))
        shapes.extend((which.shape, keep(counts, counts, boxes).shape))
        raise DeviceToHostCopyError

    monkeypatch.setattr("sam2_fast.image.automatic.mask_postprocess", postprocess)
    monkeypatch.setattr("sam2_fast.image.automatic._on_accelerator", lambda device: True)
    # A replacement for the kernel, which needs a GPU.
    monkeypatch.setattr(
        "sam2_fast.image.automatic.nms", lambda boxes, scores, threshold, alive: alive
    )
    generator = SAM2AutomaticMaskGenerator(
        model, points_per_side=2, points_per_batch=3, pred_iou_thresh=0.5
    )
    generator.predictor.set_image(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(DeviceToHostCopyError):
        generator._process_crop(0, [0, 0, 80, 60], 0, (60, 80))
    assert shapes == [(12,), (12,)], "the masks of all clicks of the crop in one call"
