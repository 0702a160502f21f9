"""Reading weights: official `.pt` files, training checkpoints, safetensors files, state dicts.

No file can run code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sam2_fast.config import NANO, PRESETS, Sam2Config
from sam2_fast.files.pickle_file import (
    MAX_HEADER_BYTES,
    WeightsFileError,
    check_regular,
    read_pickle_file,
)
from sam2_fast.files.reasons import one_line, reason_of
from sam2_fast.model import Sam2
from sam2_fast.weights.hugging_face import from_hugging_face, is_hugging_face

_BLOCK = re.compile(r"^image_encoder\.trunk\.blocks\.(\d+)\.")
_PREFIXES = ("module.", "_orig_mod.", "model.")


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message names the file and the reason."""


def read_state_dict(
    source: str | Path | Mapping[str, Any], *, max_header_bytes: int = MAX_HEADER_BYTES
) -> dict[str, Tensor]:
    """A state dict with official names, on the CPU.

    source: a `.pt` or `.safetensors` file, or a mapping; the tensors may also be nested under
        "model" or "state_dict".
    max_header_bytes: limit of the description of the tensors in a file.
    Raises FileNotFoundError, or CheckpointError for a file that is empty, truncated, no checkpoint,
    or would run code.
    """
    if isinstance(source, Mapping):
        return _plain(source, "the given mapping")
    path = Path(source)
    return _plain(read_file(path, max_header_bytes), f"checkpoint {path}")


def read_file(path: Path, max_header_bytes: int = MAX_HEADER_BYTES) -> Any:
    """The whole content of a `.safetensors` file, or of one of `torch.save`, on the CPU.

    Memory of at most a few times the size of the file is used. Raises FileNotFoundError, or
    CheckpointError, which names the file, if it is empty, damaged, compressed or would run code.
    """
    try:
        check_regular(path)
        is_safetensors = path.suffix == ".safetensors"
        read = _read_safetensors if is_safetensors else read_pickle_file
        return read(path, max_header_bytes)
    except WeightsFileError as error:
        raise CheckpointError(f"checkpoint {path}: {reason_of(error)}") from error


def _read_safetensors(path: Path, max_header_bytes: int) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > path.stat().st_size:
        raise WeightsFileError(
            f"header of {header_bytes} bytes exceeds the file; not a safetensors file"
        )
    if header_bytes > max_header_bytes:
        raise WeightsFileError(
            f"its header has {header_bytes} bytes, the limit is {max_header_bytes}; raise it with "
            "max_header_bytes="
        )
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsFileError(f"not a readable safetensors file ({reason_of(error)})") from error


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
        layers = _equal_layers(state, "memory_attention.layers.", "linear1.weight")
        fusers = _equal_layers(state, "memory_encoder.fuser.layers.", "pwconv1.weight")
        mlp = state["sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"state dict: key {error} is missing; this is not a SAM 2 model"
        ) from error
    depth = len({m[1] for m in map(_BLOCK.match, state) if m})
    version = version_of(state)
    for known in (*PRESETS.values(), NANO):
        if known.embed_dim == dim and sum(known.stages) == depth and known.pos_grid == grid:
            return replace(
                known,
                version=version,
                image_size=image_size or known.image_size,
                memory_dim=tpos.shape[-1],
                memory_layers=len(layers),
                memory_ffn_dim=layers[0],
                decoder_mlp_dim=mlp,
                num_maps=tpos.shape[0],
                fuser_dim=fusers[0],
            )
    sizes = {name: (p.embed_dim, sum(p.stages)) for name, p in {**PRESETS, "nano": NANO}.items()}
    raise CheckpointError(
        f"state dict: expected a trunk with (channels, blocks) of {sizes}, got ({dim}, {depth}); "
        f"pass a `Sam2Config` as config_file for another model"
    )


def _equal_layers(state: Mapping[str, Tensor], prefix: str, name: str) -> list[int]:
    """The rows of a weight of each layer, of which all are equal, as in every model.

    Otherwise a small file could ask for a model of any size. Raises CheckpointError.
    """
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    shapes = {state[f"{prefix}{number}.{name}"].shape for number in sorted(numbers) or ["0"]}
    if len(shapes) != 1 or numbers != {str(number) for number in range(len(numbers))}:
        raise CheckpointError(
            f"state dict: expected layers {prefix}0, 1, ... of one size, got the numbers "
            f"{_shortened(sorted(numbers))} and {len(shapes)} sizes"
        )
    shape = shapes.pop()
    if len(shape) != 2 or 0 in shape:
        raise CheckpointError(f"state dict: {prefix}0.{name}: expected a matrix, got {[*shape]}")
    return [shape[0]] * len(numbers)


def load_weights(model: Sam2, state: Mapping[str, Tensor], name: str = "state dict") -> None:
    """Copy a state dict into a model.

    Raises CheckpointError if a key is missing or unexpected or a shape differs. After any error or
    interrupt, the model has the weights that it had before.
    """
    check_weights(model, state, name)
    with restored_on_error([*model.state_dict().values()]):
        model.load_state_dict(dict(state), strict=True)


@contextmanager
def restored_on_error(
    tensors: Sequence[Tensor], undo: Callable[[], None] | None = None
) -> Iterator[None]:
    """If the block raises, give tensors that it changed in place their values back.

    tensors: without gradients, as those of a state dict.
    undo: called then, too, for what else has changed.
    """
    copies = [tensor.clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        if undo is not None:
            undo()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
        raise


def check_weights(model: Sam2, state: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless a state dict has the keys and shapes of a model."""
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


def version_of(state: Mapping[str, Tensor]) -> str:
    """Version of a state dict: "2.1" if it has the absent-object embedding, else "2.0"."""
    return "2.1" if "no_obj_embed_spatial" in state else "2.0"


def _shortened(names: list[str], limit: int = 8) -> str:
    first = one_line(", ".join(names[:limit])) or "none"
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"
