"""A `VideoSession` that can be read like the official `inference_state` dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sam2_fast.types import FrameMemory, Preview
from sam2_fast.video.session import VideoSession


@dataclass(repr=False)
class InferenceState(VideoSession):
    """What `init_state` returns.

    `state["num_frames"]` and the other documented keys are read-only views.
    """

    offload_video_to_cpu: bool = False

    def __getitem__(self, key: str) -> Any:
        if key not in _KEYS:
            raise KeyError(f"{key!r}; known keys are {sorted(_KEYS)}")
        return _KEYS[key](self)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` if the key is unknown."""
        return self[key] if key in self else default

    def keys(self) -> list[str]:
        """All keys."""
        return list(_KEYS)


def _points(session: VideoSession) -> dict[int, dict[int, Any]]:
    return {
        i: {
            f: {"point_coords": p.points.coords, "point_labels": p.points.labels}
            for f, p in t.prompts.items()
            if p.points is not None
        }
        for i, t in enumerate(session.objects.values())
    }


def _masks(session: VideoSession) -> dict[int, dict[int, Any]]:
    return {
        i: {f: p.mask for f, p in t.prompts.items() if p.mask is not None}
        for i, t in enumerate(session.objects.values())
    }


def _output(memory: Preview | FrameMemory) -> dict[str, Any]:
    map_ = None if isinstance(memory, Preview) else memory.map
    return {
        "maskmem_features": None if map_ is None else map_[None],
        "pred_masks": None if memory.logits is None else memory.logits[None],
        "obj_ptr": memory.pointer[None],
        "object_score_logits": memory.presence[None],
    }


def _outputs(session: VideoSession) -> dict[int, dict[str, dict[int, Any]]]:
    return {
        i: {
            "cond_frame_outputs": {f: _output(m) for f, m in t.bank.prompted.items()},
            "non_cond_frame_outputs": {f: _output(m) for f, m in t.bank.tracked.items()},
        }
        for i, t in enumerate(session.objects.values())
    }


_KEYS: dict[str, Any] = {
    "images": lambda s: s.frames,
    "num_frames": lambda s: s.num_frames,
    "video_height": lambda s: s.size[0],
    "video_width": lambda s: s.size[1],
    "device": lambda s: s.device,
    "storage_device": lambda s: s.storage,
    "offload_video_to_cpu": lambda s: s.offload_video_to_cpu,
    "offload_state_to_cpu": lambda s: s.storage != s.device,
    "obj_ids": lambda s: s.obj_ids,
    "obj_id_to_idx": lambda s: {k: i for i, k in enumerate(s.objects)},
    "obj_idx_to_id": lambda s: dict(enumerate(s.objects)),
    "point_inputs_per_obj": _points,
    "mask_inputs_per_obj": _masks,
    "output_dict_per_obj": _outputs,
    "temp_output_dict_per_obj": lambda s: {
        i: {
            "cond_frame_outputs": {f: _output(m) for f, m in t.previews.items()},
            "non_cond_frame_outputs": {},
        }
        for i, t in enumerate(s.objects.values())
    },
    "frames_tracked_per_obj": lambda s: {
        i: {f: {"reverse": d < 0} for f, d in t.passed.items()}
        for i, t in enumerate(s.objects.values())
    },
    "cached_features": lambda s: {} if s.features.current is None else dict([s.features.current]),
    "constants": lambda s: {},
}
