"""The official package as numerical reference; tests that need it are skipped if it is missing.

The packages are read from the folder SAM2_FAST_PEERS, or from `.peers` in the root of the
repository. `official_peer.py`, which builds official models, is in `../shared/tools` next to the
repository.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def official_peer() -> ModuleType:
    """The module that builds official models with seeded random weights."""
    peers = Path(os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers")
    tools = ROOT.parent / "shared" / "tools"
    if not (tools / "official_peer.py").is_file():
        pytest.skip("no official_peer.py in ../shared/tools")
    if not (peers / "sam2").is_dir():
        pytest.skip(
            "no official package: set SAM2_FAST_PEERS to a folder that contains sam2, or unpack "
            "it into .peers"
        )
    sys.path[:0] = [str(peers), str(tools)]
    import official_peer

    # Modules of the official package import torchvision, before any model is built.
    official_peer._define_missing_operators()

    return official_peer


@pytest.fixture(scope="session")
def official_image(official_peer: ModuleType) -> Callable[..., Any]:
    """A function of size, version and image size: the official image model in eval mode.

    Constant weights are replaced by random ones. Models are cached.
    """
    models: dict[tuple[str, str, int], Any] = {}

    def build(size: str = "t", version: str = "sam2.1", image_size: int = 256) -> Any:
        key = (size, version, image_size)
        if key not in models:
            model = official_peer.build_image(
                size, version=version, device="cpu", overrides=[f"++model.image_size={image_size}"]
            )
            models[key] = official_peer.enliven(model)
        return models[key]

    return build


def assert_error_within_twice(name: str, ours: Tensor, official: Tensor, exact: Tensor) -> None:
    """Our largest error is at most twice the official code's; there is no other tolerance.

    `exact` is the result of a float64 run with the same weights.
    """
    our_error = (ours.double() - exact).abs().max().item()
    official_error = (official.double() - exact).abs().max().item()
    assert our_error <= 2 * official_error, (
        f"{name}: error {our_error:.3e}, official {official_error:.3e}"
    )


@pytest.fixture(scope="session")
def assert_within_twice() -> Callable[[str, Tensor, Tensor, Tensor], None]:
    return assert_error_within_twice


@pytest.fixture(autouse=True)
def _no_autocast() -> None:
    """The comparison is between float32 and float64, so autocast must be off."""
    assert not torch.is_autocast_enabled("cpu")
