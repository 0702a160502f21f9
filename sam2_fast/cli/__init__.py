"""The command `sam2-fast`: segment an image, track a video, cut an image into everything, and say
what this machine can do.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 bad usage or input, 3 named weights cannot be
    had, 130 interrupted.
    """
    from sam2_fast.cli.app import app

    app()
