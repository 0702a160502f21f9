"""Check the libraries and symbols of the native module.

It must link no library of torch, of the CUDA runtime or of the driver, and export no symbol of the
library's C++ code. Importing it must not need a driver.
"""

from __future__ import annotations

import subprocess
import sys

import sam2_fast._C as _C

FORBIDDEN = ("libtorch", "libc10", "libcudart", "libcuda.so")


def main() -> int:
    """Print the linked libraries. Returns the exit status: 1 if the check failed."""
    linked = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True).stdout
    forbidden = [
        line.strip() for line in linked.splitlines() if any(name in line for name in FORBIDDEN)
    ]
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True, check=True
    ).stdout.split()[2::3]
    unexpected = [name for name in exported if "sam2_fast" in name]
    print(f"{_C.__file__}\n{linked.strip()}")
    for line in forbidden:
        print(f"forbidden: {line}")
    for name in unexpected:
        print(f"unexpected export: {name}")
    return 1 if forbidden or unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
