"""The contents of the official package's top level: `import sam2`.

As the official package, it initialises Hydra with its configurations, if Hydra is installed and the
program has not initialised it. Hydra reads the files beside this module, through the name `sam2`.
"""

import sys
from importlib.util import find_spec


def _initialise_hydra() -> None:
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if not GlobalHydra.instance().is_initialized():
        initialize_config_module("sam2", version_base="1.2")


if "sam2" in sys.modules and find_spec("hydra") is not None:
    _initialise_hydra()
