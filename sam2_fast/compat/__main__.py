"""`python -m sam2_fast.compat PROGRAM ARGUMENTS...`: run a program with `sam2` replaced."""

from __future__ import annotations

import sys

from sam2_fast.compat.shim.runner import main

if __name__ == "__main__":
    main(sys.argv[1:])
