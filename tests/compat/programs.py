"""Runs programs that are written for the official package."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def environment(*folders: str, **variables: str) -> dict[str, str]:
    """The environment of this process, with the repository and `folders` on Python's path."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")]), *folders])
    return {**os.environ, "PYTHONPATH": path, **variables}


def execute(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with further environment variables; its status is not checked."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**variables),
        cwd=folder,
        timeout=550,
        check=False,
    )


def run(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command that must succeed; returns its standard output."""
    completed = execute(command, folder, **variables)
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


def official_package() -> list[str] | None:
    """The folders of the official package and of the tools that build it, or None."""
    peers = Path(os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers")
    tools = ROOT.parent / "shared" / "tools"
    if (peers / "sam2").is_dir() and (tools / "official_peer.py").is_file():
        return [str(peers), str(tools)]
    return None


def hydra_folder() -> Path | None:
    """The folder of the peers, if Hydra is among them."""
    peers = Path(os.environ.get("SAM2_FAST_PEERS") or ROOT / ".peers")
    return peers if (peers / "hydra").is_dir() else None


def hydra_packages(folder: Path) -> list[str]:
    """Folders for Python's path with Hydra and what it needs, but without the official package.

    folder: an empty one, for links to the packages of the peers. Without these the list is empty:
    Hydra is installed, or missing.
    """
    peers = hydra_folder()
    if peers is None:
        return []
    for pattern in ("hydra*", "omegaconf*", "antlr4*"):
        for path in peers.glob(pattern):
            (folder / path.name).symlink_to(path)
    return [str(folder)]


def write_clip(folder: Path, count: int) -> None:
    """Write frames, 160 x 120, of a bright square that moves over noise, as JPEGs."""
    folder.mkdir()
    background = np.random.default_rng(0).integers(0, 120, (120, 160, 3), dtype=np.uint8)
    for t in range(count):
        frame = background.copy()
        frame[30:70, 40 + 9 * t : 90 + 9 * t] += 120
        Image.fromarray(frame).save(folder / f"{t:05d}.jpg", quality=95)
