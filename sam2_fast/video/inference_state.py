"""`inference_state`: the official dictionary, which is also a `VideoSession`."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

import torch

from sam2_fast.official.predictor_steps import PER_OBJECT, ComputedPair, State
from sam2_fast.video.cached_features import CachedFeatures
from sam2_fast.video.frames import AssignedFrames, FrameImages, Frames
from sam2_fast.video.session import Control, Keep, VideoSession

_COMPUTED = (CachedFeatures, ComputedPair)
_CONTROL = "sam2_fast_control"

KEYS = (
    *("images", "num_frames", "video_height", "video_width"),
    *("offload_video_to_cpu", "offload_state_to_cpu", "device", "storage_device"),
    *("obj_ids", "obj_id_to_idx", "obj_idx_to_id"),
    *PER_OBJECT,
    *("cached_features", "constants"),
)
_REQUIRED = set(KEYS) - {"offload_video_to_cpu", "offload_state_to_cpu"}


class InferenceState(VideoSession, dict[str, Any]):
    """What `init_state` returns: a dictionary with the keys of the official `inference_state`.

    It may be changed as the official one: entries removed, replaced or added, at any depth. A call
    of the predictor uses what the dictionary contains when it starts.

    images: `FrameImages`, or an indexable object of frames that the caller has assigned: model
        input [3, S, S] in floating point, or pictures.
    num_frames: None while it is unknown, and for a stream.
    output_dict_per_obj: index -> kind -> frame -> output (`FrameMemory`).
    cached_features: frame -> (image, backbone_out), of the frame that was used last. A caller may
        put other frames there.
    """

    def __init__(self, entries: dict[str, Any], keep: Keep = "all") -> None:
        dict.__init__(self, entries)
        self._state = None  # a reference to itself would keep it alive
        self.control = Control(keep)
        self._assigned = None

    @property
    def state(self) -> State:
        """The dictionary itself."""
        return self

    def __repr__(self) -> str:
        """One line, as of `VideoSession`; the keys if some have been removed."""
        return super().__repr__() if self.keys() >= _REQUIRED else f"InferenceState({sorted(self)})"

    def __missing__(self, key: str) -> Any:
        raise KeyError(f"{key!r}; known keys are {sorted(self)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """As a copy of its entries; features that are computed again when needed are left out."""
        cached = self["cached_features"]
        kept = {f: entry for f, entry in cached.items() if not isinstance(entry, _COMPUTED)}
        return InferenceState, ({**self, "cached_features": kept}, self.keep)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    def __copy__(self) -> InferenceState:
        """As `copy.deepcopy`: calls on a copy must not change the original."""
        return copy.deepcopy(self)

    def copy(self) -> dict[str, Any]:
        """A plain dictionary with the same entries, which calls of predictors accept."""
        return {**self}


def new_state(
    frames: Frames,
    image_size: int,
    device: torch.device,
    storage: torch.device,
    keep: Keep = "all",
    offload_video_to_cpu: bool = False,
) -> InferenceState:
    """The state of a video without objects.

    image_size: S, pixels. device: of the model. storage: of memories.
    """
    images_on = torch.device("cpu") if offload_video_to_cpu else device
    assigned = frames.images if isinstance(frames, AssignedFrames) else None
    entries: dict[str, Any] = {
        "images": FrameImages(frames, image_size, images_on) if assigned is None else assigned,
        "num_frames": frames.num_frames,
        "offload_video_to_cpu": offload_video_to_cpu,
        "offload_state_to_cpu": storage != device,
        "video_height": frames.height,
        "video_width": frames.width,
        "device": device,
        "storage_device": storage,
        "cached_features": {},
        "constants": {},
        "obj_id_to_idx": {},
        "obj_idx_to_id": {},
        "obj_ids": [],
    }
    entries |= {name: {} for name in PER_OBJECT}
    return InferenceState(entries, keep)


def session_of(state: VideoSession | State) -> VideoSession:
    """The session of a state that `init_state` returned, or of a dictionary of the same keys.

    Raises TypeError for an object of another type, and ValueError if keys are missing.
    """
    if isinstance(state, VideoSession):
        return state
    if not isinstance(state, MutableMapping):
        raise TypeError(
            f"inference_state: expected the result of init_state, or a dictionary of the official "
            f"keys, got {type(state).__name__}"
        )
    missing = sorted(_REQUIRED - state.keys())
    if missing:
        raise ValueError(
            f"inference_state: expected the keys of the official dictionary, without {missing}; "
            "call init_state"
        )
    return VideoSession(state, state["constants"].setdefault(_CONTROL, Control()))
