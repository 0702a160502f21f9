"""The work of `sam2-fast track`: which frames, from which state, into which files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import sam2_fast
from sam2_fast.cli import options as o
from sam2_fast.cli.prompts import Prompt
from sam2_fast.cli.report import note
from sam2_fast.cli.results import MASKS, RUN, remove_results, remove_temporary
from sam2_fast.cli.runs import Run, identity, refuse_running
from sam2_fast.cli.signals import deferred_signals
from sam2_fast.cli.track_results import Drawing, Pairs, ResultWriter
from sam2_fast.cli.weights import WeightsChoice
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.mask_png import Mask
from sam2_fast.io.mask_writers import FrameLabel
from sam2_fast.video.saved_session import load_session, save_session


@dataclass(frozen=True)
class Plan:
    """What a run tracks, and what it writes. num_frames: of the video."""

    directory: Path
    video: Path
    prompts: list[Prompt]
    num_frames: int
    reverse: bool
    both: bool
    max_frames: int | None
    format: o.Format
    overlay: o.VideoFormat | None

    @property
    def start(self) -> int:
        """The first prompted frame."""
        return self.prompts[0].frame

    @property
    def forward(self) -> range:
        """The frames of the pass to the end, in order."""
        count = self.num_frames if self.max_frames is None else self.max_frames
        end = min(self.start + count, self.num_frames)
        return range(self.start, self.start if self.reverse else end)

    @property
    def backward(self) -> range:
        """The frames of the pass to the beginning, in order, without those of `forward`."""
        count = self.num_frames if self.max_frames is None else self.max_frames
        if not (self.reverse or self.both):
            return range(0)
        return range(self.start - self.both, max(self.start - count, -1), -1)

    @property
    def files(self) -> list[str]:
        """The names of the results in the directory."""
        masks = f"{MASKS}.json" if self.format is o.Format.coco_rle else MASKS
        overlay = [] if self.overlay is None else [f"overlay.{self.overlay.value}"]
        return [masks, *overlay, RUN]

    def settings(
        self, weights: WeightsChoice, model: dict[str, Any], masks: dict[Prompt, Mask]
    ) -> dict[str, Any]:
        """All that the result depends on, ready for JSON.

        A run is only continued with the same settings.
        """
        prompts = [
            {**asdict(prompt), "mask": _digest(masks[prompt]) if prompt in masks else None}
            for prompt in self.prompts
        ]
        return {
            "version": sam2_fast.__version__,
            "input": _digest(identity(self.video)),
            "frames": self.num_frames,
            "prompts": prompts,
            "reverse": self.reverse,
            "both": self.both,
            "max_frames": self.max_frames,
            "format": self.format.value,
            "overlay": None if self.overlay is None else self.overlay.value,
            "weights": weights.label,
            "weights_file": None if weights.path is None else identity(weights.path),
            "size": weights.config,
            **{name: str(value) for name, value in model.items()},
        }


class Tracking:
    """One run of `track`.

    masks: of the prompts that have one. resumed: continue the run in the directory of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        predictor: Any,
        frames: FrameSource,
        settings: dict[str, Any],
        masks: dict[Prompt, Mask],
        resumed: bool,
    ) -> None:
        self._plan = plan
        self._predictor = predictor
        self._frames = frames
        self._settings = settings
        self._masks_of = masks
        self._resumed = resumed

    def run(self, weights: str, dtype: str, progress: bool) -> dict[str, Any]:
        """Track all frames that are not finished; returns the content of `run.json`.

        After an error or an interruption the finished frames are complete files, and the error is
        raised.
        """
        plan, frames = self._plan, self._frames
        facts = {
            "command": "track",
            "input": str(plan.video),
            "height": frames.height,
            "width": frames.width,
            "fps": frames.fps,
            "weights": weights,
            "device": str(self._predictor.device),
            "dtype": dtype,
            "files": plan.files,
        }
        state = self._predictor.init_state(frames, keep="reachable")
        if plan.both:
            state.control.return_starts.add(plan.start)
        run, last = self._open(state, facts)
        self._track(run, state, last, progress)
        return run.document(True)

    def _open(self, state: Any, facts: dict[str, Any]) -> tuple[Run, int | None]:
        """The run, with the objects in the session; and the last frame that the session tracked."""
        directory = self._plan.directory
        if self._resumed:
            run = Run.resume(directory, self._settings, facts)
            remove_temporary(directory)
            saved = run.saved_session()
            if saved is not None:
                load_session(state, self._predictor, saved[1])
                return run, saved[0]
            self._prompt(state)
            return run, None
        self._prompt(state)
        refuse_running(directory)
        remove_results(directory)
        return Run.start(directory, self._settings, facts), None

    def _prompt(self, state: Any) -> None:
        masks = self._masks_of
        for prompt in self._plan.prompts:
            if prompt in masks:
                arguments = (state, prompt.frame, prompt.object_id, masks[prompt])
                self._predictor.add_new_mask(*arguments, need_output=False)
                continue
            self._predictor.add_new_points_or_box(
                inference_state=state,
                frame_idx=prompt.frame,
                obj_id=prompt.object_id,
                points=np.array(prompt.points, np.float32) if prompt.points else None,
                labels=np.array(prompt.labels, np.int32) if prompt.points else None,
                box=np.array(prompt.box, np.float32) if prompt.box else None,
                need_output=False,
            )

    def _track(self, run: Run, state: Any, last: int | None, progress: bool) -> None:
        plan = self._plan
        drawing = None
        if plan.overlay is not None:
            path = plan.directory / f"overlay.{plan.overlay.value}"
            drawing = Drawing(path, self._frames, plan.prompts)
        at_end = plan.reverse or plan.both
        writer = ResultWriter(run, plan.format, self._frames, drawing, at_end)
        total = len(plan.forward) + len(plan.backward)
        bar = tqdm(
            desc="tracking",
            unit="frame",
            total=total,
            initial=len(run.labels),
            file=sys.stderr,
            disable=not progress,
        )
        in_step = False
        try:
            with bar:
                writer.repeat_finished_frames()
                results = self._results(state, last, run.done)
                while True:
                    with deferred_signals():
                        in_step = True
                        frame = next(results, None)
                        if frame is None:
                            in_step = False
                            break
                        last = frame
                        writer.write(self._label(frame), self._masks(state, frame))
                        in_step = False
                    bar.update()
            writer.close(complete=True)
        except BaseException as error:
            # A step that raises has not changed the session; an interrupt may end it anywhere.
            is_whole = not (in_step and isinstance(error, KeyboardInterrupt))
            self._stop(run, writer, state, last if is_whole else None)
            raise
        if writer.overlay_error is not None:
            raise writer.overlay_error

    def _stop(self, run: Run, writer: ResultWriter, state: Any, last: int | None) -> None:
        """Complete the files of the finished frames, and save the memories if they are whole."""
        total = len(self._plan.forward) + len(self._plan.backward)
        with deferred_signals():
            writer.stop()
            if not run.labels:
                return
            if last is not None:
                _save(run, state, last)
        note(
            f"{len(run.labels)} of {total} frames are finished in {self._plan.directory}; the same "
            "command with --resume continues"
        )

    def _results(self, state: Any, last: int | None, done: set[int]) -> Iterator[int]:
        """Track; yields the frames that are not in `done`, once they are in the session.

        last: the last frame that the session has tracked. It is tracked again, which has the same
        result, because a propagation starts at a frame.
        """
        plan = self._plan
        if last is not None and last not in done:
            yield last
            done = done | {last}
        for order, reverse in ((plan.forward, False), (plan.backward, True)):
            is_after = last is not None and last in plan.backward and not reverse
            if not order or is_after:
                continue
            begin = last if last is not None and last in order else plan.start
            limit = abs(order[-1] - begin)
            outputs = self._predictor.propagate_in_video(
                state, begin, limit, reverse, need_output=False
            )
            for frame, _, _ in outputs:
                if frame not in done and frame in order:
                    yield frame

    def _masks(self, state: Any, frame: int) -> Pairs:
        """Masks of a frame, the highest id first."""
        ids = sorted(state.obj_ids, reverse=True)
        for object_id, mask in self._predictor.frame_masks(state, frame, ids):
            yield object_id, mask.cpu().numpy()

    def _label(self, frame: int) -> FrameLabel:
        frames = self._frames
        return FrameLabel(frame, frames.frame_name(frame), frames.frame_time(frame))


def _save(run: Run, state: Any, last: int) -> None:
    """Save the memories. Without them, a resumed run tracks the finished frames again."""
    try:
        save_session(state, run.session_file(last))
        run.keep_session(last)
    except OSError as error:
        note(f"the memories cannot be saved ({error}); --resume will track frames again")


def _digest(value: Any) -> str:
    """What tells whether a mask or a list has changed."""
    if isinstance(value, np.ndarray):
        value = value.shape, value.tobytes()
    return hashlib.sha256(repr(value).encode()).hexdigest()
