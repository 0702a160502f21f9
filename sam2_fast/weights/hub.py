"""Weights from the Hugging Face Hub, through its cache."""

from __future__ import annotations

from pathlib import Path

from sam2_fast.files.reasons import reason_of

HF_MODEL_ID_TO_FILENAMES: dict[str, tuple[str, str]] = {
    f"facebook/sam2{dot}-hiera-{size}": (
        f"configs/sam2{dot}/sam2{dot}_hiera_{short}.yaml",
        f"sam2{dot}_hiera_{size.replace('-', '_')}.pt",
    )
    for dot in ("", ".1")
    for size, short in (("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l"))
}
"""Hub id -> (official configuration name, checkpoint file), the same as in the official package."""

SAFETENSORS = "model.safetensors"

NANO = "nano"
PACKAGED = {NANO: Path(__file__).resolve().parent / "nano.safetensors"}
"""Weights files of the package, by the name that is used like a Hub id."""


class WeightsUnavailableError(RuntimeError):
    """Weights are neither on disk nor in the cache, and cannot be downloaded."""


def cached(model_id: str) -> Path | None:
    """The path of the cached weights of a Hub id, or None; does not use the network."""
    from huggingface_hub import try_to_load_from_cache

    for name in _files(model_id):
        path = try_to_load_from_cache(model_id, name)
        if isinstance(path, str):
            return Path(path)
    return None


def download(model_id: str) -> Path:
    """The path of a weights file, which is downloaded if needed.

    model_id: a path, "nano", or a Hub id. Downloads are cached, and HF_HUB_OFFLINE is respected.
    Raises WeightsUnavailableError with the reason.
    """
    if model_id in PACKAGED:
        return PACKAGED[model_id]
    if Path(model_id).is_file():
        return Path(model_id)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    path = cached(model_id) if "/" in model_id else None
    if path is not None:
        return path
    reason = ""
    for name in _files(model_id):
        try:
            return Path(hf_hub_download(model_id, name))
        except LocalEntryNotFoundError as error:  # offline, or the Hub cannot be reached
            reason = reason_of(error)
            break
        except EntryNotFoundError as error:
            reason = reason_of(error)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = reason_of(error)
            break
    raise WeightsUnavailableError(
        f"weights {model_id!r}: no such file, not in the Hugging Face cache, and the download "
        f"failed ({reason}); give the path of a .pt or .safetensors file"
    )


def _files(model_id: str) -> tuple[str, ...]:
    known = HF_MODEL_ID_TO_FILENAMES.get(model_id)
    return (SAFETENSORS, known[1]) if known else (SAFETENSORS,)
