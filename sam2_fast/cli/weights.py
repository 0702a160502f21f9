"""Choose the weights of a command.

Weights that are named must be available. Without a name, the official weights are used. If they
cannot be obtained, the command runs with nano, or with random weights and a loud warning if a size
was requested.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from sam2_fast.cli.options import Size
from sam2_fast.cli.report import note
from sam2_fast.files.reasons import reason_of
from sam2_fast.weights import hub
from sam2_fast.weights.hub import WeightsUnavailableError

RANDOM = "random (seed 0)"


class WeightsChoice(NamedTuple):
    """Arguments for the model builders, and a label for the report."""

    config: str | None  # None: read from the weights
    path: Path | None
    seed: int | None
    label: str


def choose_weights(weights: str | None, size: Size | None) -> WeightsChoice:
    """Resolve --weights and --size.

    Raises WeightsUnavailableError if weights that were named are not available.
    """
    if weights is None and size is Size.nano:
        weights = hub.NANO
    if weights is not None:
        path = _path_of(weights)
        return WeightsChoice(size.value if size else None, path, None, weights)
    config = (size or Size.tiny).value
    model_id = f"facebook/sam2.1-hiera-{config.replace('_', '-')}"
    try:
        path = hub.cached(model_id) or _download(model_id)
    except WeightsUnavailableError as error:
        return _fallback(size, reason_of(error))
    return WeightsChoice(config, path, None, f"{model_id} ({path.name})")


def _fallback(size: Size | None, reason: str) -> WeightsChoice:
    """Weights to use without the official ones: nano, or random ones of the requested size."""
    if size is None:
        note(
            f"{reason}\nUsing nano, the small model of this package, instead. Its masks are much "
            f"worse than those of the released models; see docs/nano.md."
        )
        return WeightsChoice(None, hub.PACKAGED[hub.NANO], None, hub.NANO)
    bar = "!" * 78
    note(
        f"{bar}\nWARNING: RANDOM WEIGHTS (seed 0). The masks are meaningless.\n{reason}\nUse "
        f"--weights PATH to load trained weights.\n{bar}"
    )
    return WeightsChoice(size.value, None, 0, RANDOM)


def _path_of(weights: str) -> Path:
    if weights in hub.PACKAGED:
        return hub.PACKAGED[weights]
    if Path(weights).is_file():
        return Path(weights)
    looks_like_id = (
        weights.count("/") == 1
        and not weights.startswith((".", "/", "~"))
        and not weights.endswith((".pt", ".safetensors"))
    )
    if not looks_like_id:
        raise WeightsUnavailableError(
            f"--weights {weights}: no such file; expected a .pt or .safetensors file, nano, or a "
            f"Hub id such as facebook/sam2.1-hiera-tiny"
        )
    return hub.cached(weights) or _download(weights)


def _download(model_id: str) -> Path:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _reachable(constants.ENDPOINT):
        raise WeightsUnavailableError(
            f"weights {model_id!r}: not in the Hugging Face cache, and {constants.ENDPOINT} "
            f"cannot be reached"
        )
    return hub.download(model_id)


def _reachable(endpoint: str) -> bool:
    """Whether the Hub can be reached. If a proxy is configured, always True.

    One quick attempt, because the Hub's own client retries for half a minute.
    """
    if any(
        os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    ):
        return True
    address = urlparse(endpoint)
    try:
        with socket.create_connection(
            (address.hostname or "", address.port or (80 if address.scheme == "http" else 443)),
            timeout=5,
        ):
            return True
    except OSError:
        return False
