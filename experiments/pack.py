"""From a training run to the weights that the package ships: float16, with where they come from.

python -m experiments.pack runs/nano/model.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from sam2_fast.atomic import whole_file
from sam2_fast.config import NANO
from sam2_fast.weights.checkpoint import infer_config, read_state_dict
from sam2_fast.weights.hub import PACKAGED

RECIPE = Path(__file__).with_name("nano.json")
MOST_BYTES = 16_000_000


def pack(source: Path, target: Path) -> int:
    """Write `target`; returns its bytes. Raises ValueError for another model, numbers that float16
    lacks, or too large a file.
    """
    state = read_state_dict(source)
    if infer_config(state) != NANO:
        raise ValueError(f"{source}: expected the weights of nano, got {infer_config(state)}")
    small = {name: t.to(torch.float16).contiguous() for name, t in state.items()}
    if wrong := [name for name, t in small.items() if not bool(torch.isfinite(t).all())]:
        raise ValueError(f"{source}: {', '.join(wrong)} has numbers that float16 lacks")
    recipe = hashlib.sha256(RECIPE.read_bytes()).hexdigest()
    with whole_file(target) as beside:
        beside.write_bytes(
            save(
                small,
                {
                    "model": "nano",
                    "license": "Apache-2.0",
                    "recipe": RECIPE.name,
                    "recipe_sha256": recipe,
                },
            )
        )
        size = beside.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{target}: expected at most {MOST_BYTES} bytes, got {size}")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--target", type=Path, default=PACKAGED["nano"])
    given = parser.parse_args(arguments)
    given.target.parent.mkdir(exist_ok=True)
    print(f"{given.target}: {pack(given.source, given.target)} bytes")


if __name__ == "__main__":
    main()
