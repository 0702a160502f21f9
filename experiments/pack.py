"""Convert the weights of a training run to those that the package ships.

    python -m experiments.pack runs/nano/model.safetensors

They are stored in float16, with the name and hash of the training recipe.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from sam2_fast.config import NANO
from sam2_fast.files.atomic import whole_file
from sam2_fast.weights.checkpoint import infer_config, read_state_dict
from sam2_fast.weights.hub import PACKAGED

RECIPE = Path(__file__).with_name("nano.json")
MOST_BYTES = 16_000_000


def pack(source: Path, target: Path) -> int:
    """Write the weights to `target`. Returns the size of the file in bytes.

    Raises ValueError if the weights are of another model, if a value is out of float16's range, or
    if the file is too large.
    """
    state = read_state_dict(source)
    if infer_config(state) != NANO:
        raise ValueError(f"{source}: expected the weights of nano, got {infer_config(state)}")
    half = {name: t.to(torch.float16).contiguous() for name, t in state.items()}
    if wrong := [name for name, t in half.items() if not bool(torch.isfinite(t).all())]:
        raise ValueError(f"{source}: values of {', '.join(wrong)} exceed the range of float16")
    metadata = {
        "model": "nano",
        "license": "Apache-2.0",
        "recipe": RECIPE.name,
        "recipe_sha256": hashlib.sha256(RECIPE.read_bytes()).hexdigest(),
    }
    with whole_file(target) as part:
        part.write_bytes(save(half, metadata))
        size = part.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{target}: expected at most {MOST_BYTES} bytes, got {size}")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--target", type=Path, default=PACKAGED["nano"])
    options = parser.parse_args(arguments)
    options.target.parent.mkdir(exist_ok=True)
    print(f"{options.target}: {pack(options.source, options.target)} bytes")


if __name__ == "__main__":
    main()
