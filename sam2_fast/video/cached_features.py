"""`inference_state["cached_features"]`: the features of the frame that was used last."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.official.backbone import backbone_out_of, position_of
from sam2_fast.official.predictor_steps import ComputedPair
from sam2_fast.types import Features
from sam2_fast.video.frames import Frames, model_input
from sam2_fast.video.lookahead import FrameEncoder, LookAhead
from sam2_fast.video.session import VideoSession


class CachedFeatures(Sequence[Any]):
    """Features of one frame, as the official pair: image [1, 3, S, S] and `backbone_out`.

    Both are computed when they are read.
    features: as the encoder returned them.
    """

    def __init__(self, features: Features, model: Sam2, frames: Frames, frame: int) -> None:
        self.features = features
        self._model = weakref.ref(model)
        self._frames = frames
        self._frame = frame

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(2)[index])
        return (self._image, self._backbone_out)[index]()

    def _image(self) -> Tensor:
        device = self.features.low.device
        size = self._live_model().config.image_size
        return model_input(self._frames[self._frame], size, device)[None]

    def _backbone_out(self) -> dict[str, Any]:
        return backbone_out_of(self._live_model(), self.features)

    def _live_model(self) -> Sam2:
        model = self._model()
        if model is None:
            raise RuntimeError("cached_features: the model that computed them does not exist")
        return model


def features_of(
    session: VideoSession, frame: int, encoder: FrameEncoder, ahead: LookAhead | None = None
) -> Features:
    """Features of a frame, [1, ...], ready to be used on the current stream.

    They are those in `cached_features`; a frame that is not there is encoded and replaces the
    entries.
    ahead: of the propagation that requests the frame, or None.
    """
    entry = session.state["cached_features"].get(frame)
    if isinstance(entry, CachedFeatures):
        return entry.features
    known = None if entry is None else _known(entry, frame, encoder.model)
    if known is not None:
        return known
    source = ahead or LookAhead(session.frames, session.device)
    features: Features = source.features(frame, encoder)
    entry = CachedFeatures(features, encoder.model, session.frames, frame)
    session.journal.set(session.state, "cached_features", {frame: entry})
    return features


def _known(entry: Any, frame: int, model: Sam2) -> Features | None:
    """Features that the caller or an official step has put into `cached_features`.

    None if there are none, or if a step has computed them with other positions than those of the
    model now. Raises ValueError if a caller has.
    """
    backbone_out = entry[1]
    if backbone_out is None:
        return None
    levels, positions = backbone_out["backbone_fpn"][-3:], backbone_out["vision_pos_enc"][-3:]
    own = position_of(model, levels[-1])
    last = positions[-1].to(own.device)
    if last.data_ptr() == own.data_ptr() or torch.equal(last.to(own.dtype), own):
        return Features(levels[2], levels[1], levels[0])
    if isinstance(entry, ComputedPair):
        return None
    raise ValueError(
        f"cached_features[{frame}]: expected the positions ('vision_pos_enc') that forward_image "
        "returns, got others; override _get_image_feature of the predictor to use positions of "
        "your own"
    )
