"""The camera interface that forks of SAM 2 made common, on top of one streaming session."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from sam2_fast.video.inference_state import InferenceState
from sam2_fast.video.predictor import Output, SAM2VideoPredictor


class SAM2CameraPredictor:
    """One stream of a video predictor: `load_first_frame`, `add_new_prompt`, `track`.

    Unlike in those forks, a frame attends to the same memories as in an offline run: 6 maps, 15
    pointers and all prompted frames. Several cameras can share one model: create one object for
    each.
    """

    def __init__(self, predictor: SAM2VideoPredictor) -> None:
        self.predictor = predictor
        self.condition_state: InferenceState | None = None

    def load_first_frame(self, img: Any) -> int:
        """Start a stream with its first frame; returns the number of the frame, 0.

        img: an RGB image of any kind that `set_image` accepts.
        """
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
        """Prompt an object with clicks or a box on one of the newest frames.

        Arguments are as in `SAM2VideoPredictor.add_new_points_or_box`.
        """
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
        """Prompt an object with a mask on one of the newest frames.

        Arguments are as in `SAM2VideoPredictor.add_new_mask`.
        """
        return self.predictor.add_new_mask(self._state(), frame_idx, obj_id, mask)

    def remove_object(self, obj_id: Hashable) -> list[Hashable]:
        """Stop tracking an object; returns the remaining ids."""
        return self.predictor.remove_object(self._state(), obj_id, need_output=False)[0]

    def track(self, img: Any) -> tuple[list[Hashable], Tensor]:
        """Track all objects on the next frame; returns (ids, mask logits [N, 1, H, W] float32)."""
        _, ids, masks = self.predictor.step(self._state(), img)
        return ids, masks

    def reset_state(self) -> None:
        """Remove all objects; the stream continues."""
        self.predictor.reset_state(self._state())

    def _state(self) -> InferenceState:
        if self.condition_state is None:
            raise RuntimeError("no stream: call load_first_frame(image) first")
        return self.condition_state
