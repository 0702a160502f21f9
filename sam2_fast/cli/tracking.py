"""The work of `sam2-fast track`: tracks the frames of a plan, and writes them as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from sam2_fast.cli.plan import Plan
from sam2_fast.cli.prompts import Prompt
from sam2_fast.cli.report import note
from sam2_fast.cli.results import remove_results, remove_temporary
from sam2_fast.cli.runs import Run, refuse_running
from sam2_fast.cli.signals import deferred_signals
from sam2_fast.cli.track_results import Drawing, Pairs, ResultWriter
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.mask_png import Mask
from sam2_fast.io.mask_writers import FrameLabel
from sam2_fast.io.progress import Bar
from sam2_fast.video.saved_session import load_session, save_session


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
        run = Run(plan.directory, self._settings, facts)
        last = self._open(run, state)
        self._track(run, state, last, progress)
        return run.document(True)

    def _open(self, run: Run, state: Any) -> int | None:
        """Put the objects into the session; returns the last frame that the session has tracked.

        The frames of an earlier run are read. A new run is started later, with its first frame.
        """
        if self._resumed:
            run.resume()
            remove_temporary(run.directory)
            saved = run.saved_session()
            if saved is not None and self._plan.is_finished_before(saved[0], run.done):
                load_session(state, self._predictor, saved[1])
                return saved[0]
        self._prompt(state)
        return None

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

    def _start(self, run: Run) -> ResultWriter:
        """Start a new run in place of an earlier one, and open the files of the results."""
        plan = self._plan
        if not self._resumed:
            refuse_running(plan.directory)
            remove_results(plan.directory)
            run.start()
        drawing = None
        if plan.overlay is not None:
            path = plan.directory / f"overlay.{plan.overlay.value}"
            drawing = Drawing(path, self._frames, plan.prompts)
        writer: ResultWriter | None = None
        try:
            at_end = plan.reverse or plan.both
            writer = ResultWriter(run, plan.format, self._frames, drawing, at_end)
        finally:
            if writer is None and run.labels:
                run.suspend()
            elif writer is None:
                run.forget()
        return writer

    def _track(self, run: Run, state: Any, last: int | None, progress: bool) -> None:
        total = len(self._plan.order)
        bar = Bar(
            desc="tracking",
            unit="frame",
            total=total,
            initial=len(run.labels),
            file=sys.stderr,
            disable=not progress,
        )
        writer: ResultWriter | None = None
        in_step = complete = False
        try:
            with deferred_signals():
                writer = self._start(run)
            with bar:
                writer.repeat_finished_frames()
                results = self._results(state, last, run.done)
                while True:
                    with deferred_signals():
                        in_step = True
                        frame = next(results, None)
                        if frame is not None:
                            last = frame
                            writer.write(self._label(frame), self._masks(state, frame))
                        in_step = False
                    if frame is None:
                        break
                    bar.update()
            writer.draw_at_end()
            with deferred_signals():
                writer.close(complete=True)
                complete = True
        except BaseException as error:
            # A step that raises has not changed the session; an interrupt may end it anywhere.
            is_whole = not (in_step and isinstance(error, KeyboardInterrupt))
            if writer is not None and not complete:
                self._stop(run, writer, state, last if is_whole else None)
            raise
        if writer.overlay_error is not None:
            note(
                f"all {total} frames are finished; the same command with --resume draws the overlay"
            )
            raise writer.overlay_error

    def _stop(self, run: Run, writer: ResultWriter, state: Any, last: int | None) -> None:
        """Complete the files of the finished frames, and save the memories if they are whole."""
        with deferred_signals():
            writer.stop()
            if not run.labels:
                return
            if last is not None:
                _save(run, state, last)
        note(
            f"{len(run.labels)} of {len(self._plan.order)} frames are finished in "
            f"{self._plan.directory}; the same command with --resume continues"
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
        if done.issuperset(plan.order):
            return
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
