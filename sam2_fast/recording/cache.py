"""The CUDA graphs of a predictor: which exist, when they are stale, and which captures failed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.model.layers import cached_values
from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.registry import registered
from sam2_fast.ops.memory_attention import triton_refusal
from sam2_fast.proving.device import compile_ahead
from sam2_fast.recording.cuda_graph import CaptureError, Recorder, capture
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.recording.frame import FrameGraph, room_for
from sam2_fast.recording.refusals import (
    is_capturing,
    no_cuda_graphs_on,
    overridden,
    unproved_attention,
)
from sam2_fast.types import Features, Points, Prediction, Remembered, Tracked

Key = tuple[Hashable, ...]
Result = TypeVar("Result")

MAX_IMAGES = 8
"""Images of the largest batch that is encoded from a CUDA graph.

Larger batches keep a GPU busy without one, and a graph never frees its scratch memory.
"""
MAX_PROMPTS = 16
"""Prompts of the largest batch that is decoded from a CUDA graph, for the same reasons."""
MAX_GRAPHS = 24
"""CUDA graphs in a cache; the least recently used one is removed first."""
MAX_REFUSED = 256
"""Keys of failed captures in a cache; the oldest one is removed first and may be tried again."""
MAX_SEEN_SHAPES = 1000
"""Shapes of prompts that are noted as seen; the list then starts again."""
WORK_NAMES: Mapping[Hashable, str] = {
    "encode": "the image encoder",
    "decode": "the mask decoder",
    "track": "a tracked frame",
}


class Graphs:
    """A cache of CUDA graphs of one model's work on a GPU.

    Graphs are captured when they are first needed, and again after the weights have changed. If a
    capture fails, the work runs without a CUDA graph, after one warning, until the weights change.
    Set a predictor's `graphs` to None to use none. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, Any] = OrderedDict()
        self._refused: dict[Key, str] = {}
        self._registered: list[object] = []
        self._recorders: dict[Hashable, Recorder] = {}
        self._seen_shapes: set[Hashable] = set()
        self._compiled: set[Hashable] = set()
        self._fingerprint: Fingerprint | None = None

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def refused(self) -> Mapping[Key, str]:
        """The reason of each failed capture, by its key.

        A key is the kind of work, then shapes, dtypes and options.
        """
        return MappingProxyType(self._refused)

    def refuses(self, model: Sam2, x: Tensor) -> str | None:
        """Why work of `model` on the device of x cannot run from CUDA graphs, or None."""
        if (reason := no_cuda_graphs_on(x.device)) is not None:
            return reason
        if (reason := tracing.recording_reason()) is not None:
            return reason
        if torch.is_grad_enabled():
            return "gradients are enabled; CUDA graphs are inference-only"
        if torch.compiler.is_compiling() or is_capturing():
            return "the caller compiles or captures a CUDA graph itself"
        if changed := overridden(model):
            return f"{', '.join(changed)} of the model has been overridden"
        fingerprint = self._fingerprint
        if fingerprint is None or fingerprint.model is not model:
            fingerprint = self.validate(model)
        return model.reason_to_call() or fingerprint.opaque_reason()

    def refuses_frame(self, model: Sam2, low: Tensor) -> str | None:
        """Why a tracked frame cannot run from a CUDA graph although `refuses` is None, or None."""
        dtype = compute_dtype(model.no_mem_embed)
        dim = model.config.hidden_dim
        if dtype not in (torch.bfloat16, torch.float16) or dim not in (16, 32, 64, 128, 256):
            return (
                f"the compute dtype is {dtype} with {dim} channels; CUDA graphs need bfloat16 or "
                f"float16 and 16, 32 ... 256 channels"
            )
        return triton_refusal() or unproved_attention(model, low, dtype)

    def encode(
        self, model: Sam2, images: Tensor, fingerprint: Fingerprint | None = None
    ) -> Features:
        """`model.encode_image`, from a CUDA graph for up to `MAX_IMAGES` images.

        images: [B, 3, S, S].
        fingerprint: what `validate` has just returned for the model; None: it is called here.
        """
        if len(images) > MAX_IMAGES or model.encoder_reason_to_call() is not None:
            return model.encode_image(images)
        recorder = self._recorder("encode", images.device)
        key = ("encode", tuple(images.shape), *_dispatch_key(images))

        def from_graph() -> Features:
            entry = self._get(key)
            if entry is None:
                captured = self._fingerprint
                static = torch.empty_like(images).copy_(images)
                entry = static, capture(recorder, lambda: model.encode_image(static))
                self._insert(model, key, entry, captured)
            static, replay = entry
            static.copy_(images)
            return Features(*(x.clone() for x in replay()))

        self.compile_ahead("encode", images, lambda: model.encode_image(images))
        with recorder.exclusive():
            return self._run(
                model, key, from_graph, lambda: model.encode_image(images), fingerprint
            )

    def decode(
        self,
        model: Sam2,
        low: Tensor,
        features: Features,
        points: Points | None,
        hint: Tensor | None,
        multimask: bool,
    ) -> Prediction:
        """`model.decode`, from a CUDA graph for up to `MAX_PROMPTS` prompts.

        The first call with prompts of some shapes runs eagerly: a capture only pays off if the
        shapes occur again.
        """
        prompts = hint if points is None else points.labels
        eager = partial(model.decode, low, features, points, hint, multimask)
        if prompts is None or len(prompts) > MAX_PROMPTS:
            return eager()
        inputs = [low, *features, *(points or ()), hint]
        shapes = [None if x is None else (tuple(x.shape), x.stride()[1:], x.dtype) for x in inputs]
        options = _options_key(model)
        key = ("decode", multimask, points is None, *shapes, *options, *_dispatch_key(low))
        self.compile_ahead("decode", low, eager)
        if key not in self._seen_shapes:
            full = len(self._seen_shapes) >= MAX_SEEN_SHAPES
            self._seen_shapes = {key} if full else {*self._seen_shapes, key}
            return eager()
        recorder = self._recorder("decode", low.device)

        def from_graph() -> Prediction:
            entry = self._get(key)
            if entry is None:
                captured = self._fingerprint
                static = [None if x is None else torch.empty_like(x).copy_(x) for x in inputs]
                static_low = static[0]
                assert static_low is not None
                static_features = Features(*static[1:4])  # type: ignore[arg-type]
                static_points = None
                if points is not None:
                    static_points = Points(*static[4:7])  # type: ignore[arg-type]
                arguments = static_low, static_features, static_points, static[-1], multimask
                entry = static, capture(recorder, partial(model.decode, *arguments))
                self._insert(model, key, entry, captured)
            static, replay = entry
            for old, new in zip(static, inputs, strict=True):
                if old is not None and new is not None:
                    old.copy_(new)
            return Prediction(*(x.clone() for x in replay()))

        with recorder.exclusive():
            return self._run(model, key, from_graph, eager)

    def track(
        self,
        model: Sam2,
        features: Features,
        remembered: Remembered,
        multimask: bool,
        eager: Callable[[], Tracked],
        fingerprint: Fingerprint | None = None,
    ) -> Tracked:
        """Attend, decode and encode the memory of the objects of `remembered`, from a CUDA graph.

        eager: the same work without a graph, which runs if the capture fails.
        fingerprint: as in `encode`.
        """
        room = room_for(model, remembered)
        pointer_dtype = next(
            (p.dtype for own in remembered.pointers for p in own), features.low.dtype
        )
        shapes = [(tuple(x.shape), x.stride()[1:], x.dtype) for x in features]
        options = _options_key(model)
        key = (
            "track",
            room,
            remembered.longest,
            multimask,
            pointer_dtype,
            *shapes,
            *options,
            *_dispatch_key(features.low),
        )
        recorder = self._recorder("track", features.low.device)

        def from_graph() -> Tracked:
            graph = self._get(key)
            if graph is not None:
                return graph.track(recorder, features, remembered)
            captured = self._fingerprint
            graph = FrameGraph(model, features, room, remembered.longest, multimask, pointer_dtype)
            tracked = graph.track(recorder, features, remembered)
            self._insert(model, key, graph, captured)
            return tracked

        with recorder.exclusive():
            return self._run(model, key, from_graph, eager, fingerprint)

    def compile_ahead(self, kind: str, x: Tensor, run: Callable[[], object]) -> None:
        """Compile the kernels of `run`, several at once, before its first call.

        This happens once for each kind of work, device and dtype (those of x).
        """
        key = (kind, *_dispatch_key(x))
        if key not in self._compiled:
            compile_ahead(run)
            self._compiled = {*self._compiled, key}

    def validate(self, model: Sam2, encoder: bool = True) -> Fingerprint:
        """The model's fingerprint, after all graphs are removed if they are stale.

        They are stale if the model, its weights or the registered backends have changed.
        encoder: also compare the weights of the image encoder.
        """
        backends = registered()
        fingerprint = self._fingerprint
        if (
            fingerprint is None
            or backends != self._registered
            or not fingerprint.same(model, encoder)
        ):
            if self._entries:
                for recorder in list(self._recorders.values()):
                    recorder.synchronize()
            self._entries.clear()
            self._refused.clear()
            self._registered = backends
            fingerprint = self._fingerprint = Fingerprint(model)
        return fingerprint

    def _run(
        self,
        model: Sam2,
        key: Key,
        from_graph: Callable[[], Result],
        eager: Callable[[], Result],
        fingerprint: Fingerprint | None = None,
    ) -> Result:
        """`from_graph()`, or `eager()` if the capture for `key` fails or has failed before.

        Both run under the lock of the recorder. So work on other streams that caches or uses values
        computed from the weights is ordered with them.
        """
        if fingerprint is None or fingerprint is not self._fingerprint:
            self.validate(model)
        if key in self._refused:
            return eager()
        try:
            return from_graph()
        except CaptureError as error:
            # Keep the text only: the traceback references tensors of the failed capture.
            reason = str(error)
        # Run before the key is refused: an error that this raises too is passed to the caller.
        result = eager()
        self._refuse(key, reason)
        return result

    def _refuse(self, key: Key, reason: str) -> None:
        if key in self._refused:  # another thread was faster
            return
        self._refused[key] = reason
        for oldest in [*self._refused][:-MAX_REFUSED]:
            self._refused.pop(oldest, None)
        warnings.warn(
            f"sam2_fast could not capture a CUDA graph of {WORK_NAMES[key[0]]} ({reason}). Work of "
            "these shapes runs without a CUDA graph from now on: the results are the same, each "
            "call launches its kernels one by one. Set the predictor's `graphs` to None to use no "
            "CUDA graphs at all; `graphs.refused` lists what could not be captured.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _recorder(self, kind: str, device: torch.device) -> Recorder:
        """One recorder for each kind of work.

        Frames are encoded ahead while others are tracked, so the two need separate scratch memory.
        """
        recorder = self._recorders.get((kind, device))
        if recorder is None:
            recorder = self._recorders.setdefault((kind, device), Recorder(device))
        return recorder

    def _get(self, key: Key) -> Any:
        entry = self._entries.get(key)
        with suppress(KeyError):  # another thread may remove it, with a lock of another recorder
            self._entries.move_to_end(key)
        return entry

    def _insert(self, model: Sam2, key: Key, entry: Any, captured: Fingerprint | None) -> None:
        """Add a graph, unless the model has changed since `captured`, when its capture began."""
        fingerprint = self.validate(model)
        if fingerprint is not captured:
            return
        fingerprint.keep_alive(cached_values(model))
        self._entries[key] = entry
        with suppress(KeyError):  # another thread may remove graphs, too
            while len(self._entries) > MAX_GRAPHS:
                self._entries.popitem(last=False)


def _options_key(model: Sam2) -> tuple[Hashable, ...]:
    """What decides, besides weights, what the model computes."""
    decoder = model.sam_mask_decoder
    options = vars(model.options).values(), vars(decoder.options).values()
    return (*(tuple(values) for values in options), decoder.training)


def _dispatch_key(x: Tensor) -> tuple[Hashable, ...]:
    """What decides, besides shapes, which kernels run."""
    kind = x.device.type
    return (
        x.device,
        x.dtype,
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.is_inference_mode_enabled(),
    )
