"""Reading weights: official `.pt` files, training checkpoints, safetensors files, state dicts.

No file can run code.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_fast.config import NANO, PRESETS, Sam2Config
from sam2_fast.model import Sam2
from sam2_fast.weights.hugging_face import from_hugging_face, is_hugging_face

MAX_HEADER_BYTES = 16 << 20
"""Largest safetensors header that is read; those of the released models have about 100 kB."""

_BLOCK = re.compile(r"^image_encoder\.trunk\.blocks\.(\d+)\.")
_PREFIXES = ("module.", "_orig_mod.", "model.")


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file and the reason."""


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict with official names, on the CPU.

    source: a `.pt` or `.safetensors` file, or a mapping; the tensors may also be nested under
        "model" or "state_dict".
    Raises FileNotFoundError, or CheckpointError for a file that is empty, truncated, no checkpoint,
    or would run code.
    """
    if isinstance(source, Mapping):
        return _plain(source, "the given mapping")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"checkpoint {path}: the file is empty (0 bytes); download it again")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _plain(loaded, f"checkpoint {path}")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, path.stat().st_size):
        raise CheckpointError(
            f"checkpoint {path}: header of {header_bytes} bytes exceeds {MAX_HEADER_BYTES} or the "
            f"file; not a safetensors file"
        )
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path}: not a readable safetensors file ({error})"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}: refused: not a plain table of tensors, or loading it would run "
            f"code"
        ) from error
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        OSError,
    ) as error:
        raise CheckpointError(
            f"checkpoint {path}: not a readable PyTorch checkpoint "
            f"({str(error).splitlines()[0][:200]})"
        ) from error


def _plain(loaded: Any, name: str) -> dict[str, Tensor]:
    """The state dict inside `loaded`, without prefixes of wrappers, with official names."""
    for key in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(v, Tensor) for v in loaded.values())
    ):
        raise CheckpointError(
            f"{name}: expected a table of tensors, or one under the key 'model' (the official "
            f"layout), got neither"
        )
    state = {str(k): v for k, v in loaded.items()}
    for prefix in _PREFIXES:
        if all(k.startswith(prefix) for k in state):
            state = {k[len(prefix) :]: v for k, v in state.items()}
    return from_hugging_face(state) if is_hugging_face(state) else state


def infer_config(state: Mapping[str, Tensor], image_size: int | None = None) -> Sam2Config:
    """The architecture of a state dict, derived from its keys and shapes.

    image_size: None: that of training.
    """
    try:
        dim = state["image_encoder.trunk.patch_embed.proj.weight"].shape[0]
        grid = tuple(state["image_encoder.trunk.pos_embed"].shape[-2:])
        tpos = state["maskmem_tpos_enc"]
        ffn = state["memory_attention.layers.0.linear1.weight"].shape[0]
        fuser = state["memory_encoder.fuser.layers.0.pwconv1.weight"].shape[0]
        mlp = state["sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"state dict: key {error} is missing; this is not a SAM 2 model"
        ) from error
    depth = 1 + max(int(m[1]) for m in map(_BLOCK.match, state) if m)
    layers = 1 + max(
        int(k.split(".")[2]) for k in state if k.startswith("memory_attention.layers.")
    )
    version = version_of(state)
    for known in (*PRESETS.values(), NANO):
        if known.embed_dim == dim and sum(known.stages) == depth and known.pos_grid == grid:
            return replace(
                known,
                version=version,
                image_size=image_size or known.image_size,
                memory_dim=tpos.shape[-1],
                memory_layers=layers,
                memory_ffn_dim=ffn,
                decoder_mlp_dim=mlp,
                num_maps=tpos.shape[0],
                fuser_dim=fuser,
            )
    sizes = {name: (p.embed_dim, sum(p.stages)) for name, p in {**PRESETS, "nano": NANO}.items()}
    raise CheckpointError(
        f"state dict: expected a trunk with (channels, blocks) of {sizes}, got ({dim}, {depth}); "
        f"pass a `Sam2Config` as config_file for another model"
    )


def load_weights(model: Sam2, state: Mapping[str, Tensor], name: str = "state dict") -> None:
    """Copy a state dict into a model.

    Raises CheckpointError, and copies nothing, if a key is missing or unexpected or a shape
    differs.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        hint = f"; it looks like SAM {version_of(state)}, the model is SAM {model.config.version}"
        raise CheckpointError(
            f"{name}: missing keys {_shortened(missing)}, unexpected keys "
            f"{_shortened(unexpected)}{hint}"
        )
    shapes = [
        f"{k}: {tuple(state[k].shape)} for {tuple(expected[k].shape)}"
        for k in expected
        if state[k].shape != expected[k].shape
    ]
    if shapes:
        raise CheckpointError(
            f"{name}: shapes differ ({_shortened(shapes)}); is the size of the model right?"
        )
    model.load_state_dict(dict(state), strict=True)


def version_of(state: Mapping[str, Tensor]) -> str:
    """Version of a state dict: "2.1" if it has the absent-object embedding, else "2.0"."""
    return "2.1" if "no_obj_embed_spatial" in state else "2.0"


def _shortened(names: list[str], limit: int = 8) -> str:
    first = ", ".join(names[:limit]) or "none"
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"
