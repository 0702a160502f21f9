"""Results that are not finite never become memories: they raise FloatingPointError instead.

A pointer of NaN would be attended to by all later frames, and each would produce another one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class Verdict:
    """Whether the results of some objects on a frame are finite.

    On a GPU the answer is copied to the host while the device computes it; nothing waits for it.
    """

    def __init__(self, frame: int, obj_ids: Sequence[Hashable], results: dict[str, Tensor]) -> None:
        """results: name -> [N, ...] floating point, of N objects."""
        self.frame = frame
        self._obj_ids = list(obj_ids)
        self._names = [*results]
        # A sum is finite if and only if all its terms are: those of models are far from overflow.
        sums = [x.reshape(len(x), -1).sum(1, dtype=torch.float32) for x in results.values()]
        finite = torch.isfinite(torch.stack(sums, 1))
        self._event: torch.cuda.Event | None = None
        self._finite = finite.to("cpu", non_blocking=True)
        if finite.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(finite.device))

    def is_known(self) -> bool:
        """Whether `error` will not wait for the device."""
        return self._event is None or self._event.query()

    def error(self) -> FloatingPointError | None:
        """The error to raise, or None if all results are finite; waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        if self._finite.all():
            return None
        objects = [
            f"object {obj_id!r} ({', '.join(self._names_of(row))})"
            for obj_id, row in zip(self._obj_ids, self._finite.tolist(), strict=True)
            if not all(row)
        ]
        return FloatingPointError(
            f"frame {self.frame}: expected finite results, got NaN or infinity for "
            f"{'; '.join(objects)}; nothing of this frame is stored. Check the frame and the "
            "weights, or use a dtype of a larger range, such as float32 or bfloat16"
        )

    def _names_of(self, row: Sequence[bool]) -> list[str]:
        return [name for name, finite in zip(self._names, row, strict=True) if not finite]
