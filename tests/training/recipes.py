"""A small recipe for tests, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "model": {
        "embed_dim": 16,
        "stages": [1, 1, 1, 1],
        "global_blocks": [2],
        "windows": [8, 4, 4, 2],
        "memory_layers": 1,
        "memory_ffn_dim": 64,
        "decoder_mlp_dim": 64,
        "fuser_dim": 64,
    },
    "seed": 7,
    "bfloat16": False,
    "ema": 0.5,
    "layer_decay": 0.8,
    "dropout": 0.2,
    "drop_path": 0.2,
    "warmup": 2,
    "lr": 1e-3,
    "image_size": 64,
    "sources": [{"kind": "synthetic", "frames": 2, "batch": 2, "objects": 2, "length": 100}],
    "annotator": {"clicks": 1},
    "stages": [{"steps": 3}, {"steps": 3, "image_size": 96, "lr": 5e-4}],
}


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write SMALL with changed keys to a file."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(SMALL | changes), encoding="utf-8")
    return path
