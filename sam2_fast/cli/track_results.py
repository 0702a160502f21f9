"""The files of a tracking run: masks, and the video with the masks drawn on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sam2_fast.cli import options as o
from sam2_fast.cli.prompts import Prompt
from sam2_fast.cli.results import MASKS
from sam2_fast.cli.runs import Run
from sam2_fast.cli.signals import check_signals
from sam2_fast.io import overlay
from sam2_fast.io.frames import FrameSource
from sam2_fast.io.json_files import to_json
from sam2_fast.io.mask_png import Mask
from sam2_fast.io.mask_writers import (
    DavisWriter,
    FrameLabel,
    JsonWriter,
    PngWriter,
    describe,
    frame_entry,
)
from sam2_fast.io.rle import decode_rle

Pairs = Iterator[tuple[int, Mask]]
"""(object id, mask [H, W]) of one frame, the highest id first; few masks are in memory at once."""


class ResultWriter:
    """Writes the masks and the overlay of a run, frame by frame.

    An error of the overlay does not stop the masks: `overlay_error` has it until the end.
    at_end: draw the overlay when all frames are finished, because a video file can only be written
        forwards.
    """

    def __init__(
        self, run: Run, kind: o.Format, frames: FrameSource, drawing: Drawing | None, at_end: bool
    ) -> None:
        self._run = run
        self._drawing = drawing
        self._at_end = at_end
        self.overlay_error: Exception | None = None
        self._is_repeated = False
        self._with_masks = kind is o.Format.coco_rle or drawing is not None
        self._json: JsonWriter | None = None
        if kind is o.Format.coco_rle:
            self._json = JsonWriter(run.directory / f"{MASKS}.json", frames.height, frames.width)
        png = DavisWriter if kind is o.Format.davis else PngWriter
        self._png = png(run.directory / MASKS)

    def repeat_finished_frames(self) -> None:
        """Write the frames of an earlier part of the run into the files that start again."""
        if self._json is not None:
            for row in self._run.rows():
                self._json.write_row(to_json(row))
        if self._drawing is not None and not self._at_end:
            self._draw_rows(self._run.rows())
        self._is_repeated = True

    def write(self, label: FrameLabel, pairs: Pairs) -> None:
        """Write one frame. After an error no file of the frame is left."""
        canvas = None
        if self._drawing is not None and not self._at_end and self.overlay_error is None:
            canvas = self._drawing.canvas(label.frame)
        entries: list[dict[str, Any]] = []

        def described() -> Pairs:
            for object_id, mask in pairs:
                entry = describe(mask, with_mask=self._with_masks)
                entries.append({"id": object_id, **entry})
                if canvas is not None:
                    overlay.tint(canvas, mask, object_id)
                yield object_id, mask

        finished = False
        try:
            if self._json is None:
                self._png.write(label, described())
            else:
                deque(described(), maxlen=0)  # the entries are all that is written
            row = frame_entry(label, entries)
            text = to_json(row)
            if self._json is not None:
                self._json.write_row(text)
            self._run.add(row, text)
            finished = True
        finally:
            if not finished:
                self._remove(label)
        if canvas is not None and self._drawing is not None:
            self._attempt(partial(self._drawing.write, label, canvas))

    def draw_at_end(self) -> None:
        """Draw the overlay, if it is drawn when all frames are finished."""
        if self._at_end and self._drawing is not None:
            self._draw_rows(sorted(self._run.rows(), key=lambda row: int(row["frame"])))

    def close(self, complete: bool) -> None:
        """Complete all files.

        After an interruption they have the finished frames, and the masks are marked as incomplete.
        """
        if self._drawing is not None and self.overlay_error is None:
            self._attempt(self._drawing.close)
        frames = len(self._run.labels)
        if self._json is not None:
            self._json.close(complete)
            frames = self._json.frames
        self._run.close(complete and self.overlay_error is None, frames)

    def stop(self) -> None:
        """End before all frames are finished: complete the files of those that are.

        Without a finished frame, no file is left. If the frames of an earlier part of the run are
        not repeated yet, its files stay as they are.
        """
        if self._run.labels and self._is_repeated:
            self.close(complete=False)
            return
        if self._drawing is not None:
            self._drawing.abort()
        if self._json is not None:
            self._json.abort()
        if self._run.labels:
            self._run.suspend()
        else:
            self._run.forget()

    def _remove(self, label: FrameLabel) -> None:
        if self._json is None:
            self._png.remove(label)
        else:
            self._json.keep(len(self._run.labels))

    def _draw_rows(self, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
        for row in rows:
            check_signals()
            if self._drawing is None or self.overlay_error is not None:
                return
            label = FrameLabel(row["frame"], row["name"], row["seconds"])
            canvas = self._drawing.canvas(label.frame)
            for entry in reversed(row["objects"]):
                overlay.tint(canvas, decode_rle(entry["segmentation"]), entry["id"])
            self._attempt(partial(self._drawing.write, label, canvas))

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do something to the overlay; after an error there is none, and the masks continue."""
        assert self._drawing is not None
        try:
            action()
        except (OSError, ValueError) as error:
            self.overlay_error = error
            self._drawing.abort()


class Drawing:
    """The video with masks and prompts drawn on it. The file is opened with the first frame."""

    def __init__(self, path: Path, frames: FrameSource, prompts: list[Prompt]) -> None:
        self.path = path
        self._frames = frames
        self._prompts = prompts
        self._video: overlay.VideoWriter | None = None

    def canvas(self, frame: int) -> overlay.RGB8:
        """A copy of a frame to draw on."""
        return np.array(self._frames[frame])

    def write(self, label: FrameLabel, canvas: overlay.RGB8) -> None:
        """Draw the prompts of a frame, and append it."""
        if self._video is None:
            size = self._frames.height, self._frames.width
            self._video = overlay.VideoWriter(self.path, *size, self._frames.fps or 24.0)
        for prompt in self._prompts:
            if prompt.frame == label.frame:
                canvas = overlay.draw_points(canvas, prompt.points, prompt.labels)
                if prompt.box:
                    canvas = overlay.draw_box(canvas, prompt.box, prompt.object_id)
        self._video.write(canvas, label.seconds)

    def close(self) -> None:
        """Complete the file."""
        if self._video is not None:
            self._video.close()
            self._video = None

    def abort(self) -> None:
        """Leave no file."""
        if self._video is not None:
            self._video.abort()
            self._video = None
