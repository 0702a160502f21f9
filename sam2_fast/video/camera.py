"""The de-facto camera interface (`load_first_frame`, `add_new_prompt`, `track`) over one
streaming session."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from sam2_fast.video.inference_state import InferenceState
from sam2_fast.video.predictor import Output, SAM2VideoPredictor


class SAM2CameraPredictor:
    """One stream of a video predictor, under the names that camera forks of SAM 2 made common.

    Unlike those, it feeds every frame the same memories as an offline run: 6 maps, 15 pointers
    and all prompted frames. Several cameras on one model are several of these.
    """

    def __init__(self, predictor: SAM2VideoPredictor) -> None:
        self.predictor = predictor
        self.condition_state: InferenceState | None = None

    def load_first_frame(self, img: Any) -> int:
        """Start a stream with its first frame (RGB, as `set_image` takes it); returns its
        number, 0."""
        state = self.predictor.init_state(None)
        number, _, _ = self.predictor.step(state, img)
        self.condition_state = state
        return number

    def add_new_prompt(
        self,
        frame_idx: int,
        obj_id: Hashable,
        points: Any = None,
        labels: Any = None,
        bbox: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
    ) -> Output:
        """Click on or box an object on one of the newest frames; see
        `SAM2VideoPredictor.add_new_points_or_box`."""
        add = self.predictor.add_new_points_or_box
        return add(
            self._state(),
            frame_idx,
            obj_id,
            points,
            labels,
            clear_old_points,
            normalize_coords,
            bbox,
        )

    add_new_points = add_new_prompt

    def add_new_mask(self, frame_idx: int, obj_id: Hashable, mask: Any) -> Output:
        """Give an object's mask on one of the newest frames; see
        `SAM2VideoPredictor.add_new_mask`."""
        return self.predictor.add_new_mask(self._state(), frame_idx, obj_id, mask)

    def remove_object(self, obj_id: Hashable) -> list[Hashable]:
        """Stop tracking an object; returns the remaining ids."""
        return self.predictor.remove_object(self._state(), obj_id, need_output=False)[0]

    def track(self, img: Any) -> tuple[list[Hashable], Tensor]:
        """Take the next frame; returns (object ids, mask logits [N, 1, H, W] float32)."""
        _, ids, masks = self.predictor.step(self._state(), img)
        return ids, masks

    def reset_state(self) -> None:
        """Forget all objects; the stream goes on."""
        self.predictor.reset_state(self._state())

    def _state(self) -> InferenceState:
        if self.condition_state is None:
            raise RuntimeError("no stream: call load_first_frame(image) first")
        return self.condition_state
