"""A predictor's recordings: which there are, when one is stale, and why one cannot be made."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from sam2_fast.model import Sam2
from sam2_fast.model.layers import held_by
from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.autocast import compute_dtype
from sam2_fast.ops.core.registry import registered
from sam2_fast.ops.memory_attention import attention_configuration, triton_refusal
from sam2_fast.proving import gate
from sam2_fast.proving.device import compile_ahead
from sam2_fast.recording.cuda_graph import CaptureError, Recorder, captured
from sam2_fast.recording.fingerprint import Fingerprint
from sam2_fast.recording.frame import FrameGraph, room_for
from sam2_fast.types import Features, Points, Prediction, Remembered, Tracked

Key = tuple[Hashable, ...]
Result = TypeVar("Result")

IMAGES, PROMPTS = 8, 16
"""Larger batches are not recorded: they keep a GPU busy by themselves, and what a recording needs
while it runs is held for good.
"""
MOST = 24
"""Recordings that are held; the one that was used longest ago goes first."""
MOST_REFUSED = 256
"""Keys whose capture failed that are remembered; the oldest is forgotten first, and tried again."""
WORK: Mapping[Hashable, str] = {
    "encode": "the image encoder",
    "decode": "the mask decoder",
    "track": "a tracked frame",
}


class Graphs:
    """Recordings of one model's work on a GPU, made when they are first needed and again after its
    weights have changed.

    Set a predictor's `graphs` to None to do without. Copies and pickles start empty. Where a
    capture fails, the work runs without a recording, after one warning, until the weights change.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[Key, Any] = OrderedDict()
        self._refused: dict[Key, str] = {}
        self._choices: list[object] = []
        self._recorders: dict[Hashable, Recorder] = {}
        self._seen_shapes: set[Hashable] = set()
        self._compiled: set[Hashable] = set()
        self._weights: Fingerprint | None = None

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def refused(self) -> Mapping[Key, str]:
        """The reason of each capture that failed, by the key of its recording: the kind of work,
        then shapes, dtypes and options.
        """
        return MappingProxyType(self._refused)

    def refuses(self, model: Sam2, x: Tensor) -> str | None:
        """Why nothing can be recorded that `model` does with x; None where it can."""
        if (reason := no_cuda_graphs_on(x.device)) is not None:
            return reason
        if (reason := tracing.recording_reason()) is not None:
            return reason
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_capturing():
            return "gradients are wanted, or the caller compiles or records by itself"
        if changed := overridden(model):
            return f"{', '.join(changed)} of the model has been overridden"
        weights = self._weights
        if weights is None or weights.of is not model:
            weights = self.current(model)
        return weights.hooked() or weights.opaque()

    def refuses_frame(self, model: Sam2, low: Tensor) -> str | None:
        """Why a tracked frame cannot be recorded where nothing else `refuses`;
        None where it can.
        """
        dtype, dim = compute_dtype(model.no_mem_embed), model.config.hidden_dim
        if dtype not in (torch.bfloat16, torch.float16) or dim not in (16, 32, 64, 128, 256):
            return (
                f"products are in {dtype} with {dim} channels, recordings take bfloat16 or "
                f"float16 and 16, 32 ... 256 channels"
            )
        return triton_refusal() or _unproved(model, low, dtype)

    def encode(self, model: Sam2, images: Tensor, checked: Fingerprint | None = None) -> Features:
        """`model.encode_image`, for up to `IMAGES` images from a recording. images: [B, 3, S, S].

        checked: what `current` has just said of the model.
        """
        if len(images) > IMAGES:
            return model.encode_image(images)
        recorder = self._recorder("encode", images.device)
        key = ("encode", tuple(images.shape), *_circumstances(images))

        def recorded() -> Features:
            held = self._get(key)
            if held is None:
                static = torch.empty_like(images).copy_(images)
                held = static, captured(recorder, lambda: model.encode_image(static))
                self._insert(model, key, held)
            static, replay = held
            static.copy_(images)
            return Features(*(x.clone() for x in replay()))

        self.compile_ahead("encode", images, lambda: model.encode_image(images))
        with recorder.turn():
            return self._run(model, key, recorded, lambda: model.encode_image(images), checked)

    def decode(
        self,
        model: Sam2,
        low: Tensor,
        features: Features,
        points: Points | None,
        hint: Tensor | None,
        multimask: bool,
    ) -> Prediction:
        """`model.decode`, for up to `PROMPTS` prompts from a recording, where such shapes have come
        before: one that comes once is not worth it."""
        rows = hint if points is None else points.labels
        eager = partial(model.decode, low, features, points, hint, multimask)
        if rows is None or len(rows) > PROMPTS:
            return eager()
        given = [low, *features, *(points or ()), hint]
        shapes = [None if x is None else (tuple(x.shape), x.stride()[1:], x.dtype) for x in given]
        options = tuple(vars(model.options).values())
        key = ("decode", multimask, points is None, *shapes, *options, *_circumstances(low))
        self.compile_ahead("decode", low, eager)
        if key not in self._seen_shapes:
            self._seen_shapes = (
                {*self._seen_shapes, key} if len(self._seen_shapes) < 1000 else {key}
            )
            return eager()
        recorder = self._recorder("decode", low.device)

        def recorded() -> Prediction:
            held = self._get(key)
            if held is None:
                static = [None if x is None else torch.empty_like(x).copy_(x) for x in given]
                maps = Features(*static[1:4])  # type: ignore[arg-type]
                where = None if points is None else Points(*static[4:7])  # type: ignore[arg-type]
                static_low = static[0]
                assert static_low is not None
                run = partial(model.decode, static_low, maps, where, static[-1], multimask)
                held = static, captured(recorder, run)
                self._insert(model, key, held)
            static, replay = held
            for old, new in zip(static, given, strict=True):
                if old is not None and new is not None:
                    old.copy_(new)
            return Prediction(*(x.clone() for x in replay()))

        with recorder.turn():
            return self._run(model, key, recorded, eager)

    def track(
        self,
        model: Sam2,
        features: Features,
        remembered: Remembered,
        multimask: bool,
        eager: Callable[[], Tracked],
        checked: Fingerprint | None = None,
    ) -> Tracked:
        """Attend, decode and encode the memory of the objects of `remembered` from a recording.

        eager: the same without a recording, for where its capture fails. checked: as `encode`.
        """
        room = room_for(model, remembered)
        pointer_dtype = next(
            (p.dtype for own in remembered.pointers for p in own), features.low.dtype
        )
        shapes = [(tuple(x.shape), x.stride()[1:], x.dtype) for x in features]
        options = tuple(vars(model.options).values())
        key = (
            "track",
            room,
            remembered.longest,
            multimask,
            pointer_dtype,
            *shapes,
            *options,
            *_circumstances(features.low),
        )
        recorder = self._recorder("track", features.low.device)

        def recorded() -> Tracked:
            graph = self._get(key)
            if graph is not None:
                return graph.track(recorder, features, remembered)
            graph = FrameGraph(model, features, room, remembered.longest, multimask, pointer_dtype)
            tracked = graph.track(recorder, features, remembered)
            self._insert(model, key, graph)
            return tracked

        with recorder.turn():
            return self._run(model, key, recorded, eager, checked)

    def compile_ahead(self, kind: str, x: Tensor, run: Callable[[], object]) -> None:
        """Before work of a kind runs for the first time on the device and in the dtypes of x:
        compile its kernels, several at once.
        """
        key = (kind, *_circumstances(x))
        if key not in self._compiled:
            compile_ahead(run)
            self._compiled = {*self._compiled, key}

    def current(self, model: Sam2, encoder: bool = True) -> Fingerprint:
        """What the model's weights are. Recordings of others, or of other backends, are dropped.

        encoder: whether the image encoder is looked at, too.
        """
        choices = registered()
        weights = self._weights
        if weights is None or choices != self._choices or not weights.same(model, encoder):
            if self._held:
                for recorder in list(self._recorders.values()):
                    recorder.finish()
            self._held.clear()
            self._refused.clear()
            self._choices = choices
            weights = self._weights = Fingerprint(model)
        return weights

    def _run(
        self,
        model: Sam2,
        key: Key,
        recorded: Callable[[], Result],
        eager: Callable[[], Result],
        checked: Fingerprint | None = None,
    ) -> Result:
        """`recorded()`, or `eager()` where the capture for `key` fails or has failed before.

        Either runs inside a turn, so that work on other streams that keeps or uses values computed
        from the weights is ordered with it.
        """
        if checked is None or checked is not self._weights:
            self.current(model)
        if key in self._refused:
            return eager()
        try:
            return recorded()
        except CaptureError as error:
            # And nothing else: the traceback holds what the recording would have used.
            reason = str(error)
        result = eager()  # before the key is refused: an error that this raises too is the caller's
        self._refuse(key, reason)
        return result

    def _refuse(self, key: Key, reason: str) -> None:
        if key in self._refused:  # another thread was faster
            return
        self._refused[key] = reason
        while len(self._refused) > MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        warnings.warn(
            f"sam2_fast could not capture a CUDA graph of {WORK[key[0]]} ({reason}). Work of "
            f"these shapes runs "
            "without a CUDA graph from now on: the results are the same, each call launches its "
            "kernels one by "
            "one. Set the predictor's `graphs` to None to use no CUDA graphs at all; "
            "`graphs.refused` lists what "
            "could not be captured.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _recorder(self, kind: str, device: torch.device) -> Recorder:
        """Frames are encoded ahead while others are tracked, so the two have scratch memory of
        their own.
        """
        recorder = self._recorders.get((kind, device))
        if recorder is None:
            recorder = self._recorders.setdefault((kind, device), Recorder(device))
        return recorder

    def _get(self, key: Key) -> Any:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def _insert(self, model: Sam2, key: Key, made: Any) -> None:
        self.current(model).hold(held_by(model))
        self._held[key] = made
        while len(self._held) > MOST:
            self._held.popitem(last=False)


def overridden(model: Sam2) -> list[str]:
    """Methods and properties of `Sam2` that a subclass or the instance has replaced: a recording
    runs those of `Sam2`.
    """
    kind, own = type(model), vars(model)
    return [
        name for name, value in _own_members() if getattr(kind, name) is not value or name in own
    ]


@cache
def _own_members() -> tuple[tuple[str, Any], ...]:
    """All that `Sam2` itself defines, as its class gives it, but for special methods."""
    return tuple(
        (name, getattr(Sam2, name)) for name, value in vars(Sam2).items() if _is_code(name, value)
    )


def _is_code(name: str, value: object) -> bool:
    special = name.startswith("__") and name.endswith("__")
    return not special and (
        callable(value) or isinstance(value, property | classmethod | staticmethod)
    )


class Runner:
    """Runs a model's work for one call, from CUDA graphs where they can be used; what it knows of
    the model is looked up once.
    """

    def __init__(self, model: Sam2, graphs: Graphs | None) -> None:
        allowed = graphs is not None and graphs.refuses(model, model.no_mem_embed) is None
        self.model = model
        self.graphs = graphs if allowed else None
        """None where nothing can be recorded."""
        self._checked = None if self.graphs is None else self.graphs.current(model, encoder=False)

    def current(self) -> Fingerprint | None:
        """What the model is now, its image encoder included; None without graphs."""
        return None if self.graphs is None else self.graphs.current(self.model)

    def encode(self, images: Tensor, checked: Fingerprint | None = None) -> Features:
        """`model.encode_image`. images: [B, 3, S, S]; checked: what `current` has just said."""
        if self.graphs is None:
            return self.model.encode_image(images)
        return self.graphs.encode(self.model, images, checked)

    def track(
        self,
        features: Features,
        remembered: Remembered,
        multimask: bool,
        eager: Callable[[], Tracked],
    ) -> Tracked:
        """`eager()`, from a CUDA graph where one can be used."""
        if self.graphs is None:
            return eager()
        self.graphs.compile_ahead("track", features.low, eager)
        if self.graphs.refuses_frame(self.model, features.low) is not None:
            return eager()
        return self.graphs.track(self.model, features, remembered, multimask, eager, self._checked)


def no_cuda_graphs_on(device: torch.device) -> str | None:
    """Why nothing can be recorded on `device`; None where it can."""
    return (
        None if device.type == "cuda" else f"tensors are on {device}, recordings need a cuda device"
    )


def is_capturing() -> bool:
    """Whether the caller captures a CUDA graph on the current stream."""
    return torch.cuda.is_current_stream_capturing()


def _unproved(model: Sam2, low: Tensor, products: torch.dtype) -> str | None:
    """Why memory attention must not run in Triton; None where it has proved itself, or need not.
    What nothing is known of is proved by the registry, when a frame is tracked without a
    recording."""
    if not model.prove:
        return None
    config = model.config
    tokens = (low.shape[2] * low.shape[3], low.shape[1])
    sizes = config.memory_layers, config.memory_dim, config.memory_ffn_dim
    configuration = attention_configuration(tokens, low.dtype, products, *sizes)
    return gate.current().refusal_of("memory_attention", "triton", low.device, configuration)


def _circumstances(x: Tensor) -> tuple[Hashable, ...]:
    """What decides which kernels run, besides shapes."""
    kind = x.device.type
    return (
        x.device,
        x.dtype,
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.is_inference_mode_enabled(),
    )
