"""`python -m sam2_fast.cli` is the same as `sam2-fast`."""

from sam2_fast.cli import main

main()
