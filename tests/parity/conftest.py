"""The official package as numerical peer. Tests that need it are skipped, with the reason, where it
is not at hand.

The peer packages are found through SAM2_FAST_PEERS or in `.peers` at the repository's root; the
builder of official models (`official_peer.py`) in `../shared/tools` beside the repository.
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


def _folders() -> tuple[Path, Path]:
    return Path(
        os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers"
    ), ROOT.parent / "shared" / "tools"


@pytest.fixture(scope="session")
def official_peer() -> ModuleType:
    """The module that builds official models with seeded random weights."""
    peers, tools = _folders()
    if not (tools / "official_peer.py").is_file():
        pytest.skip("no official_peer.py in ../shared/tools")
    if not (peers / "sam2").is_dir():
        pytest.skip(
            "no official package: set SAM2_FAST_PEERS to a folder that holds sam2, or unpack it "
            "in .peers"
        )
    sys.path[:0] = [str(peers), str(tools)]
    import official_peer

    # torchvision is imported by modules of the official package, before any model is built
    official_peer._define_missing_operators()

    return official_peer


@pytest.fixture(scope="session")
def official_image(official_peer: ModuleType) -> Callable[..., Any]:
    """size, version, image_size -> the official image model in eval mode, every constant weight
    made random; cached.
    """
    made: dict[tuple[str, str, int], Any] = {}

    def build(size: str = "t", version: str = "sam2.1", image_size: int = 256) -> Any:
        key = (size, version, image_size)
        if key not in made:
            built = official_peer.build_image(
                size, version=version, device="cpu", overrides=[f"++model.image_size={image_size}"]
            )
            made[key] = official_peer.enliven(built)
        return made[key]

    return build


def within_twice(name: str, mine: Tensor, official: Tensor, exact: Tensor) -> None:
    """The only tolerance: our error against a float64 run of the same weights is at most twice the
    official code's own.
    """
    ours, theirs = (
        (mine.double() - exact).abs().max().item(),
        (official.double() - exact).abs().max().item(),
    )
    assert ours <= 2 * theirs, f"{name}: error {ours:.3e}, official {theirs:.3e}"


@pytest.fixture(scope="session")
def twice() -> Callable[[str, Tensor, Tensor, Tensor], None]:
    return within_twice


@pytest.fixture(autouse=True)
def _single_precision() -> None:
    """The rule compares float32 with float64: nothing else may be in force."""
    assert not torch.is_autocast_enabled("cpu")
