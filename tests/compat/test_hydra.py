"""Under the shim, `import sam2` initialises Hydra as the official package does."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.compat.programs import environment, hydra_folder, hydra_packages

INSTALL = "import sam2_fast.compat as compat\ncompat.install()\n"
COMPOSED = """
import sam2
from hydra import compose
from hydra.utils import instantiate

config = compose("configs/sam2.1/sam2.1_hiera_t.yaml", ["++model.image_size=64"])
model = instantiate(config.model)
assert type(model).__module__ == "sam2_fast.official.base", type(model)
assert model.image_size == 64 and model.unfused_parts().keys() <= {"memory_attention"}
for name in ("sam2_hiera_l.yaml", "configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune"):
    assert len(compose(name)) > 0
"""
INITIALISED = """
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

initialize_config_dir(config_dir="/", version_base="1.2")
before = GlobalHydra.instance().hydra
import sam2

assert GlobalHydra.instance().hydra is before
"""
WITHOUT = """
import sys

sys.modules["hydra"] = None
import sam2
from sam2.build_sam import build_sam2

assert build_sam2("configs/sam2/sam2_hiera_t.yaml", device="cpu").config.version == "2.0"
"""
NOT_IMPORTED = """
import sys, sam2_fast
import sam2_fast.compat.official

assert "hydra" not in sys.modules, "only `import sam2` needs Hydra"
"""


@pytest.mark.parametrize(
    "program",
    [INSTALL + COMPOSED, INSTALL + INITIALISED, INSTALL + WITHOUT, NOT_IMPORTED],
    ids=["composes", "initialised before", "without Hydra", "without the shim"],
)
def test_hydra_is_initialised(program: str, tmp_path: Path) -> None:
    if hydra_folder() is None and find_spec("hydra") is None:
        pytest.skip("Hydra is not installed")
    folders = hydra_packages(tmp_path)
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, env=environment(*folders), timeout=300)
