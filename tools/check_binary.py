"""Check the built module: no torch, CUDA runtime or driver library among its needs, and it imports
where there is no driver."""

from __future__ import annotations

import subprocess
import sys

import sam2_fast._C as _C

FORBIDDEN = ("libtorch", "libc10", "libcudart", "libcuda.so")


def main() -> int:
    """Print what the module links against; 1 where something forbidden is among it."""
    needed = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True).stdout
    found = [
        line.strip() for line in needed.splitlines() if any(name in line for name in FORBIDDEN)
    ]
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True
    ).stdout.split()[2::3]
    foreign = [name for name in exported if "sam2_fast" in name]
    print(f"{_C.__file__}\n{needed.strip()}")
    for line in found:
        print(f"forbidden: {line}")
    for name in foreign:
        print(f"unexpected export: {name}")
    return 1 if found or foreign else 0


if __name__ == "__main__":
    sys.exit(main())
