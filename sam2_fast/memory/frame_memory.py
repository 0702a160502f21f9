"""The result of one object on one frame: tensors without a batch, and the official dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from torch import Tensor

_KEYS = (
    "maskmem_features",
    "maskmem_pos_enc",
    "pred_masks",
    "obj_ptr",
    "object_score_logits",
)


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
    read, until an entry is written; from then on they are stored, and the attributes follow them.

    pointer: [256]. presence: [1] logit. map: [h * w, 64] memory tokens; None for the result of a
        prompt that is not committed yet, and once the memory is too old to be attended to.
    logits: [1, 4h, 4w] float32, holes filled; None once the memory is too old.
    positions: of memory maps, a list that all memories of a session share.
    corrected: whether the user has corrected this frame after tracking it.
    is_compact: whether no entry of the dictionary has been written.
    """

    __slots__ = (
        "__weakref__",
        "corrected",
        "is_compact",
        "logits",
        "map",
        "pointer",
        "positions",
        "presence",
    )
    __hash__ = None  # it can be changed

    def __init__(
        self,
        pointer: Tensor,
        presence: Tensor,
        map: Tensor | None = None,  # noqa: A002 - the name of the attribute
        logits: Tensor | None = None,
        positions: list[Tensor] | None = None,
    ) -> None:
        self.pointer = pointer
        self.presence = presence
        self.map = map
        self.logits = logits
        self.positions = positions
        self.corrected = False
        self.is_compact = True

    @classmethod
    def of(cls, output: Mapping[str, Any]) -> FrameMemory:
        """A memory with the entries of an output of one object."""
        memory = cls.__new__(cls)
        for name, _ in _FOLLOW.values():
            setattr(memory, name, None)
        memory.corrected = memory.is_compact = False
        memory.update(output)
        return memory

    def without_map(self) -> FrameMemory:
        """A memory with the same pointer that has neither map nor logits."""
        return FrameMemory(self.pointer, self.presence)

    # the official dictionary

    def __getitem__(self, key: str) -> Any:
        if not self.is_compact or key not in _KEYS:
            return dict.__getitem__(self, key)
        if key == "maskmem_features":
            return None if self.map is None else to_map(self.map)
        if key == "maskmem_pos_enc":
            if self.map is None or self.positions is None:
                return None
            return self._stored()[key]  # the caller may change the list
        if key == "pred_masks":
            return None if self.logits is None else self.logits[None]
        return (self.pointer if key == "obj_ptr" else self.presence)[None]

    def __setitem__(self, key: str, value: Any) -> None:
        dict.__setitem__(self._stored(), key, value)
        if key in _FOLLOW:
            name, convert = _FOLLOW[key]
            setattr(self, name, None if value is None else convert(value))

    def __delitem__(self, key: str) -> None:
        dict.__delitem__(self._stored(), key)
        if key in _FOLLOW:
            setattr(self, _FOLLOW[key][0], None)

    def __iter__(self) -> Iterator[str]:
        return iter(_KEYS) if self.is_compact else dict.__iter__(self)

    def __len__(self) -> int:
        return len(_KEYS) if self.is_compact else dict.__len__(self)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS if self.is_compact else dict.__contains__(self, key)

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
        if not self.is_compact:
            return _restore, (self.copy(), self.corrected)
        tensors = self.pointer, self.presence, self.map, self.logits
        alone = (None if x is None else _alone(x) for x in tensors)
        return _restore, ((*alone, self.positions), self.corrected)

    def _stored(self) -> FrameMemory:
        """The same object, with its entries stored."""
        if self.is_compact:
            own = self.positions if self.map is not None else None
            self.positions = None if own is None else [*own]
            values = (
                None if self.map is None else to_map(self.map),
                self.positions,
                None if self.logits is None else self.logits[None],
                self.pointer[None],
                self.presence[None],
            )
            for key, value in zip(_KEYS, values, strict=True):
                dict.__setitem__(self, key, value)
            self.is_compact = False
        return self


def _first(x: Tensor) -> Tensor:
    return x[0]


def _to_tokens(features: Tensor) -> Tensor:
    """[1, 64, h, w] -> [h * w, 64]."""
    return features[0].flatten(1).t()


def _itself(x: Any) -> Any:
    return x


_FOLLOW: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "maskmem_features": ("map", _to_tokens),
    "maskmem_pos_enc": ("positions", _itself),
    "pred_masks": ("logits", _first),
    "obj_ptr": ("pointer", _first),
    "object_score_logits": ("presence", _first),
}
"""Key -> the attribute that follows it, and how."""


def compact(output: Mapping[str, Any]) -> FrameMemory:
    """An output of one object, as this library or a caller has stored it, as a `FrameMemory`."""
    return output if isinstance(output, FrameMemory) else FrameMemory.of(output)


def is_corrected(output: Mapping[str, Any]) -> bool:
    """Whether the user has corrected the frame of this output after tracking it."""
    return isinstance(output, FrameMemory) and output.corrected


def has_map(output: Mapping[str, Any]) -> bool:
    """Whether an output, of any number of objects, has memory maps."""
    if isinstance(output, FrameMemory):
        return output.map is not None
    return output["maskmem_features"] is not None


def _alone(x: Tensor) -> Tensor:
    """The tensor, in a storage without the results of other objects."""
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def to_map(tokens: Tensor) -> Tensor:
    """[h * w, 64] -> [1, 64, h, w], of a square map."""
    side = isqrt(len(tokens))
    return tokens.t().unflatten(1, (side, side))[None]


def _restore(content: Any, corrected: bool) -> FrameMemory:
    memory = FrameMemory.of(content) if isinstance(content, dict) else FrameMemory(*content)
    memory.corrected = corrected
    return memory
