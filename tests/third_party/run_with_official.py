"""run_with_official.py PEERS TOOLS SCRIPT ARGUMENTS...: run a program with the official package, on
a CPU, in float32. `official_package.prepare` says what is changed for this.
"""

from __future__ import annotations

import runpy
import sys

import official_package

peers, tools, script = sys.argv[1:4]
official_package.prepare(peers, tools)
sys.argv = sys.argv[3:]
runpy.run_path(script, run_name="__main__")
