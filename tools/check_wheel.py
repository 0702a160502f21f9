"""Check a CPU-only wheel: its files, and that it works without the checkout.

python tools/check_wheel.py WHEEL
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

REQUIRED = (
    "sam2_fast/kernels/connected_components.py",
    "sam2_fast/weights/nano.safetensors",
    "sam2_fast/compat/sam2_hiera_t.yaml",
    "sam2_fast/compat/configs/sam2.1/sam2.1_hiera_b+.yaml",
)
UNWANTED = ("tests/", "benchmarks/", "experiments/", "tools/")
PROGRAM = """
import os, sys

sys.path[:0] = [".", sys.argv[1]]
import sam2_fast._C as native
import torch
from sam2_fast.ops.connected_components import connected_components

assert os.path.abspath(native.__file__).startswith(os.getcwd()), native.__file__
assert native.cuda_architectures() == [], native.cuda_architectures()
masks = torch.ones(1, 3, 3, dtype=torch.bool)
assert connected_components(masks, backend="cpu")[1].eq(9).all()
"""


def check_files(wheel: Path) -> None:
    """Raise AssertionError unless the wheel has the native module, kernels and weights only."""
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("sam2_fast/_C.") for name in names), names
    missing = [name for name in REQUIRED if name not in names]
    assert not missing, f"not in the wheel: {missing}"
    unwanted = [name for name in names if name.startswith(UNWANTED)]
    assert not unwanted, f"in the wheel: {unwanted}"
    print(f"{wheel}: {len(names)} files")


def check_use(wheel: Path) -> None:
    """Install the wheel into a folder of its own and compute something with it."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "--no-deps", "--target", folder, str(wheel)], check=True)
        # -S: without site, so that the editable install of the checkout is not found
        packages = sysconfig.get_path("purelib")
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, packages]
        subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    path = Path(sys.argv[1]).resolve()
    check_files(path)
    check_use(path)
