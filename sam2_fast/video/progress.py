"""The progress bar of a propagation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from sam2_fast.io.progress import Bar
from sam2_fast.ops.core.lookups import LookedUp

_TQDM = LookedUp(globals(), "tqdm")


def progress_bar(order: Iterable[int], shown: bool) -> Iterator[int]:
    """The frames of a propagation, with a bar if `shown`.

    A bar that a program has put in the position of `tqdm` is shown as in the official predictor.
    """
    if _TQDM.replaced():
        return iter(tqdm(order, desc="propagate in video"))
    return iter(Bar(order, desc="propagate in video") if shown else order)
