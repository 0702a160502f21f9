"""Models of the official package and of transformers, with the same weights as this library's.

A model is None if its package is not available.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(os.environ.get("SAM2_FAST_PEER_TOOLS", ROOT.parent / "shared" / "tools"))
FOLDER = Path(os.environ.get("SAM2_FAST_PEERS", ROOT / ".peers"))
SHORT = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def _import_tool(name: str) -> Any:
    """The module `name` of the folder `TOOLS`, or None if the folder has no such module."""
    if not (TOOLS / f"{name}.py").is_file():
        return None
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    return importlib.import_module(name)


def has_official(requested: Sequence[str]) -> bool:
    """Whether the official package is available and requested.

    requested: names of peers; empty for all.
    """
    return (
        "official" in (requested or ("official",))
        and (FOLDER / "sam2").is_dir()
        and (TOOLS / "official_peer.py").is_file()
    )


def official(
    size: str,
    state: dict[str, torch.Tensor],
    image_size: int,
    device: torch.device,
    overrides: Sequence[str] = (),
    **builder_arguments: Any,
) -> Any:
    """The official video predictor with these weights, or None if the package is not available.

    overrides, builder_arguments: passed to the builder of the official package.
    """
    tool = _import_tool("official_peer") if (FOLDER / "sam2").is_dir() else None
    if tool is None:
        return None
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    predictor = tool.build_video(
        SHORT[size],
        device=str(device),
        overrides=[f"++model.image_size={image_size}", *overrides],
        **builder_arguments,
    )
    predictor.load_state_dict(state)
    # The official extension that fills holes is not compiled here, and without it the predictor
    # warns and leaves holes open. The benchmarks therefore compare predictors that fill no holes.
    predictor.fill_hole_area = 0
    return predictor


def transformers(
    size: str, state: dict[str, torch.Tensor], image_size: int, device: torch.device
) -> Any:
    """`Sam2VideoModel` with these weights, or None.

    None if transformers is not installed or the image size is not 1024, the only one it supports.
    """
    tool = transformers_tool()
    if tool is None or image_size != 1024:
        return None
    return tool.to_hf_video(state, SHORT[size]).to(device)


def transformers_tool() -> Any:
    """The module with helpers for `Sam2VideoModel`, or None if transformers is not installed."""
    return _import_tool("transformers_peer") if find_spec("transformers") else None
