"""The peers of the predictor benchmarks at equal weights: the official package and transformers,
each where it is at hand.
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


def _tool(name: str) -> Any:
    if not (TOOLS / f"{name}.py").is_file():
        return None
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    return importlib.import_module(name)


def has_official(wanted: Sequence[str]) -> bool:
    """Whether the official package is laid out and among the wanted peers; none named: all are
    wanted.
    """
    return (
        "official" in (wanted or ("official",))
        and (FOLDER / "sam2").is_dir()
        and (TOOLS / "official_peer.py").is_file()
    )


def official(
    size: str,
    state: dict[str, torch.Tensor],
    image_size: int,
    device: torch.device,
    overrides: Sequence[str] = (),
    **more: Any,
) -> Any:
    """The official video predictor with these weights, or None where the package is not laid out.
    overrides, more: for its builder.
    """
    tool = _tool("official_peer") if (FOLDER / "sam2").is_dir() else None
    if tool is None:
        return None
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    predictor = tool.build_video(
        SHORT[size],
        device=str(device),
        overrides=[f"++model.image_size={image_size}", *overrides],
        **more,
    )
    predictor.load_state_dict(state)
    # its extension is not compiled here: it would warn and leave holes open, so both sides leave
    #     them
    predictor.fill_hole_area = 0
    return predictor


def transformers(
    size: str, state: dict[str, torch.Tensor], image_size: int, device: torch.device
) -> Any:
    """`Sam2VideoModel` with these weights (1024 pixels only), or None where it is not installed."""
    tool = transformers_tool()
    if tool is None or image_size != 1024:
        return None
    return tool.to_hf_video(state, SHORT[size]).to(device)


def transformers_tool() -> Any:
    """The helpers around `Sam2VideoModel`, or None where it is not installed."""
    return _tool("transformers_peer") if find_spec("transformers") else None
