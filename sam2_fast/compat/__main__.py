"""`python -m sam2_fast.compat script.py ARGUMENTS...`: run a program with `sam2` replaced."""

from __future__ import annotations

import os
import runpy
import sys

from sam2_fast.compat import install

USAGE = "usage: python -m sam2_fast.compat (script.py | -m package.module) [arguments...]"


def main(arguments: list[str]) -> None:
    """Run the program as Python would; its exit code and errors are passed on.

    Without a program, print the usage and exit with code 2.
    """
    if arguments[:1] == ["-m"] and len(arguments) > 1:
        install()
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    if not arguments or not os.path.isfile(arguments[0]):
        reason = (
            f"{arguments[0]}: no such file\n"
            if arguments and not arguments[0].startswith("-")
            else ""
        )
        sys.stderr.write(f"{reason}{USAGE}\n")
        sys.exit(2)
    install()
    sys.argv = arguments
    # Python puts the folder of the script here.
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
