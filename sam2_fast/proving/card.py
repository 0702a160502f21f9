"""What a proof is valid for: a card, its driver, and all software that affects a kernel."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Card:
    """A device and its software. A proof is valid as long as all of it is the same."""

    name: str
    """As the driver reports it, such as "NVIDIA H100 80GB HBM3"."""
    capability: int | None
    """80, 89, 90 ...; None for a CPU."""
    driver: str
    torch: str
    triton: str | None
    package: str
    build: str
    """Digest of the sources of kernels and ops, the shipped choices and the compiled module."""

    @property
    def architecture(self) -> str:
        """ "sm_90", or "cpu"."""
        return "cpu" if self.capability is None else f"sm_{self.capability}"

    @property
    def identity(self) -> str:
        """A name for files, different for different cards."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.architecture}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=64)
def card_of(device: torch.device) -> Card:
    """The card behind `device`, a CPU or a CUDA device with an index."""
    hardware: tuple[str, int | None, str] = _cpu_name(), None, ""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        hardware = torch.cuda.get_device_name(device), 10 * major + minor, _driver()
    return Card(
        *hardware,
        str(torch.__version__),
        _version("triton"),
        _version("sam2-fast") or "unknown",
        build_digest(),
    )


@lru_cache(maxsize=1)
def build_digest() -> str:
    """Digest of everything in the package that affects the results of kernels."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> list[Path]:
    kernels = find_spec("sam2_fast.kernels")
    folders = list(kernels.submodule_search_locations or ()) if kernels else []
    files = [p for folder in folders for p in Path(folder).glob("*.py")]
    files += [*(_PACKAGE / "ops").glob("*.py"), *(_PACKAGE / "choices").glob("*.json")]
    compiled = find_spec("sam2_fast._C")
    if compiled is not None and compiled.origin is not None:
        files.append(Path(compiled.origin))
    return sorted(files, key=lambda path: (path.parent.name, path.name))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str:
    """Version of the NVIDIA driver, or if it is not available, of the CUDA API that it has."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return f"CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else text.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "CPU")
