"""Which weights a command runs with: the named ones or an error; else the official ones; else nano,
or random ones, said loudly.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from sam2_fast.cli.options import Size
from sam2_fast.cli.report import note
from sam2_fast.weights import hub
from sam2_fast.weights.hub import WeightsUnavailableError

RANDOM = "random (seed 0)"


class Chosen(NamedTuple):
    """Arguments for the builders, and the words for the report."""

    config: str | None  # None: read from the weights
    path: Path | None
    seed: int | None
    label: str


def choose_weights(weights: str | None, size: Size | None) -> Chosen:
    """Resolve --weights and --size. Raises WeightsUnavailableError if weights that were named
    cannot be had.
    """
    if weights is None and size is Size.nano:
        weights = hub.NANO
    if weights is not None:
        path = _named(weights)
        return Chosen(size.value if size else None, path, None, weights)
    config = (size or Size.tiny).value
    model_id = f"facebook/sam2.1-hiera-{config.replace('_', '-')}"
    try:
        path = hub.cached(model_id) or _download(model_id)
    except WeightsUnavailableError as error:
        return _without(size, " ".join(str(error).split()))
    return Chosen(config, path, None, f"{model_id} ({path.name})")


def _without(size: Size | None, reason: str) -> Chosen:
    """No official weights: `nano`, or random ones of the size that was asked for."""
    if size is None:
        note(
            f"{reason}\nUsing nano, the small model of this package: far from the released ones, "
            f"see docs/nano.md."
        )
        return Chosen(None, hub.PACKAGED[hub.NANO], None, hub.NANO)
    bar = "!" * 78
    note(
        f"{bar}\nWARNING: RANDOM WEIGHTS (seed 0). The masks mean nothing.\n{reason}\nGive "
        f"--weights PATH to use real ones.\n{bar}"
    )
    return Chosen(size.value, None, 0, RANDOM)


def _named(weights: str) -> Path:
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
            f"--weights {weights}: no such file; give a .pt or .safetensors file, or a Hub id "
            f"such as facebook/sam2.1-hiera-tiny"
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
    """A quick look whether a download can work at all; the Hub client itself tries for half a
    minute. Proxies are trusted.
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
