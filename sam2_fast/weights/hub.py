"""Weights from the Hugging Face Hub, through its cache."""

from __future__ import annotations

from pathlib import Path

HF_MODEL_ID_TO_FILENAMES: dict[str, tuple[str, str]] = {
    f"facebook/sam2{dot}-hiera-{size}": (
        f"configs/sam2{dot}/sam2{dot}_hiera_{short}.yaml",
        f"sam2{dot}_hiera_{size.replace('-', '_')}.pt",
    )
    for dot in ("", ".1")
    for size, short in (("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l"))
}
"""Hub id to (official configuration name, checkpoint file), as the official package has it."""

SAFETENSORS = "model.safetensors"

NANO = "nano"
PACKAGED = {NANO: Path(__file__).resolve().parent / "nano.safetensors"}
"""Weights that come with the package, by the name that stands for a Hub id."""


class WeightsUnavailableError(RuntimeError):
    """Weights that are neither on disk nor in the cache nor can be downloaded."""


def cached(model_id: str) -> Path | None:
    """The cached weights of a Hub id, without any network use; None where there are none."""
    from huggingface_hub import try_to_load_from_cache

    for name in _files(model_id):
        found = try_to_load_from_cache(model_id, name)
        if isinstance(found, str):
            return Path(found)
    return None


def download(model_id: str) -> Path:
    """A path as it is, "nano" as the package has it, or the weights of a Hub id: from the cache,
    else downloaded (HF_HUB_OFFLINE counts).

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

    found = cached(model_id) if "/" in model_id else None
    if found is not None:
        return found
    reason = ""
    for name in _files(model_id):
        try:
            return Path(hf_hub_download(model_id, name))
        except LocalEntryNotFoundError as error:  # offline, or the Hub out of reach
            reason = str(error)
            break
        except EntryNotFoundError as error:
            reason = str(error)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error)
            break
    raise WeightsUnavailableError(
        f"weights {model_id!r}: no such file, not in the Hugging Face cache, and the download "
        f"failed ({reason.splitlines()[0]}); "
        "give the path of a .pt or .safetensors file"
    )


def _files(model_id: str) -> tuple[str, ...]:
    known = HF_MODEL_ID_TO_FILENAMES.get(model_id)
    return (SAFETENSORS, known[1]) if known else (SAFETENSORS,)
