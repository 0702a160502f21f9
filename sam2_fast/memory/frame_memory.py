"""The result of one object on one frame: tensors without a batch, and the official dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

_KEYS = (
    "maskmem_features",
    "maskmem_pos_enc",
    "pred_masks",
    "obj_ptr",
    "object_score_logits",
)


class _Parts(NamedTuple):
    pointer: Tensor
    presence: Tensor
    map: Tensor | None
    logits: Tensor | None
    positions: list[Tensor] | None


if TYPE_CHECKING:
    _Dictionary = dict[str, Any]
else:

    class _Dictionary(MutableMapping, dict):
        """A dictionary that has all its methods from a few that a subclass defines."""

        __slots__ = ()


class FrameMemory(_Dictionary):
    """The result of one object on one frame, which later frames may attend to.

    It is also the official output of a frame: a dictionary with maskmem_features [1, 64, h, w] or
    None, maskmem_pos_enc (a list of one tensor of the same shape) or None, pred_masks [1, 1, 4h,
    4w] or None, obj_ptr [1, 256] and object_score_logits [1, 1]. These are computed when they are
    read. Once an entry is written, the dictionary is the only representation, and the attributes
    are computed from it.

    pointer: [256]. presence: [1] logit. map: [h * w, 64] memory tokens; None for the result of a
        prompt that is not committed yet, and once the memory is too old to be attended to.
    logits: [1, 4h, 4w] float32, holes filled; None once the memory is too old.
    positions: of memory maps, a list that all memories of a session share.
    corrected: whether the user has corrected this frame after tracking it.
    """

    __slots__ = ("__weakref__", "_parts", "corrected")
    __hash__ = None  # it can be changed

    def __init__(
        self,
        pointer: Tensor,
        presence: Tensor,
        map: Tensor | None = None,  # noqa: A002 - the name of the attribute
        logits: Tensor | None = None,
        positions: list[Tensor] | None = None,
    ) -> None:
        self._parts: _Parts | None = _Parts(pointer, presence, map, logits, positions)
        self.corrected = False

    @classmethod
    def of(cls, output: Mapping[str, Any]) -> FrameMemory:
        """A memory with the entries of an output of one object."""
        return _restore(None, dict(output), False)

    # attributes

    @property
    def is_compact(self) -> bool:
        """Whether no entry of the dictionary has been written."""
        return self._parts is not None

    @property
    def pointer(self) -> Tensor:
        """The object pointer, [256]."""
        return _parts(self).pointer

    @property
    def presence(self) -> Tensor:
        """Logit that the object is in the frame, [1]."""
        return _parts(self).presence

    @property
    def map(self) -> Tensor | None:
        """Memory tokens, [h * w, 64]."""
        return _parts(self).map

    @property
    def logits(self) -> Tensor | None:
        """Mask logits, [1, 4h, 4w]."""
        return _parts(self).logits

    @property
    def positions(self) -> list[Tensor] | None:
        """Positions of the memory map, a list of one tensor [1, 64, h, w]."""
        return _parts(self).positions

    def without_map(self) -> FrameMemory:
        """A memory with the same pointer that has neither map nor logits."""
        return FrameMemory(self.pointer, self.presence)

    # the official dictionary

    def __getitem__(self, key: str) -> Any:
        parts = self._parts
        if parts is None or key not in _KEYS:
            return dict.__getitem__(self, key)
        if key == "maskmem_features":
            return None if parts.map is None else to_map(parts.map)
        if key == "maskmem_pos_enc":
            if parts.map is None or parts.positions is None:
                return None
            return self._as_dictionary()[key]  # the caller may change the list
        if key == "pred_masks":
            return None if parts.logits is None else parts.logits[None]
        return (parts.pointer if key == "obj_ptr" else parts.presence)[None]

    def __setitem__(self, key: str, value: Any) -> None:
        dict.__setitem__(self._as_dictionary(), key, value)

    def __delitem__(self, key: str) -> None:
        dict.__delitem__(self._as_dictionary(), key)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS) if self._parts is not None else dict.__iter__(self)

    def __len__(self) -> int:
        return len(_KEYS) if self._parts is not None else dict.__len__(self)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS if self._parts is not None else dict.__contains__(self, key)

    def __reversed__(self) -> Iterator[str]:
        return reversed([*self])

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**self, **other} if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**other, **self} if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> FrameMemory:  # type: ignore[override]
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """A dictionary with the same entries."""
        return {**self}

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self._parts
        if parts is None:
            return _restore, (None, self.copy(), self.corrected)
        copies = _Parts(
            _alone(parts.pointer),
            _alone(parts.presence),
            None if parts.map is None else _alone(parts.map),
            None if parts.logits is None else _alone(parts.logits),
            parts.positions,
        )
        return _restore, (copies, None, self.corrected)

    def _as_dictionary(self) -> FrameMemory:
        """The same object, with the dictionary as its only representation."""
        parts = self._parts
        if parts is not None:
            own = parts.positions if parts.map is not None else None
            positions = None if own is None else [*own]
            features = None if parts.map is None else to_map(parts.map)
            logits = None if parts.logits is None else parts.logits[None]
            values = features, positions, logits, parts.pointer[None], parts.presence[None]
            for key, value in zip(_KEYS, values, strict=True):
                dict.__setitem__(self, key, value)
            self._parts = None
        return self


def compact(output: Mapping[str, Any]) -> FrameMemory:
    """An output of one object, as this library or a caller has stored it, as a `FrameMemory`."""
    if isinstance(output, FrameMemory) and output._parts is not None:
        return output
    memory = FrameMemory(*_parts(output))
    memory.corrected = getattr(output, "corrected", False)
    return memory


def is_corrected(output: Mapping[str, Any]) -> bool:
    """Whether the user has corrected the frame of this output after tracking it."""
    return isinstance(output, FrameMemory) and output.corrected


def has_map(output: Mapping[str, Any]) -> bool:
    """Whether an output, of any number of objects, has memory maps."""
    if isinstance(output, FrameMemory) and output._parts is not None:
        return output._parts.map is not None
    return output["maskmem_features"] is not None


def _parts(output: Mapping[str, Any]) -> _Parts:
    if isinstance(output, FrameMemory) and output._parts is not None:
        return output._parts
    features, logits = output["maskmem_features"], output["pred_masks"]
    return _Parts(
        output["obj_ptr"][0],
        output["object_score_logits"][0],
        None if features is None else features[0].flatten(1).t(),
        None if logits is None else logits[0],
        output.get("maskmem_pos_enc"),
    )


def _alone(x: Tensor) -> Tensor:
    """The tensor, in a storage without the results of other objects."""
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def to_map(tokens: Tensor) -> Tensor:
    """[h * w, 64] -> [1, 64, h, w], of a square map."""
    side = isqrt(len(tokens))
    return tokens.t().unflatten(1, (side, side))[None]


def _restore(parts: _Parts | None, values: dict[str, Any] | None, corrected: bool) -> FrameMemory:
    memory = FrameMemory.__new__(FrameMemory)
    memory._parts, memory.corrected = parts, corrected
    for key, value in (values or {}).items():
        dict.__setitem__(memory, key, value)
    return memory
