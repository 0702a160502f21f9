"""The command `sam2-fast`: segmentation, tracking, evaluation, training and kernel checks."""

from __future__ import annotations


def main() -> None:
    """Run the command line.

    Exit codes: 0 success; 1 out of device memory, or a kernel failed in `doctor`; 2 bad usage or
    input; 3 weights named by --weights are not available; 130 interrupted.
    """
    from sam2_fast.cli.app import app

    app()
