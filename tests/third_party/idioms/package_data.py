"""Files of the package found by its attributes, and sources of its modules."""

import inspect
import os
from importlib.resources import files

import sam2
import sam2.modeling.sam2_base
from common import save

folder = os.path.dirname(sam2.__file__)
module = sam2.modeling.sam2_base
save(
    path=os.path.isdir(folder) and os.path.samefile(folder, next(iter(sam2.__path__))),
    origin=sam2.__spec__.origin == sam2.__file__,
    resources=[(files("sam2") / name).is_file() for name in ("build_sam.py", "utils/misc.py")],
    module=os.path.relpath(module.__file__, folder),
    source="SAM2Base" in inspect.getsource(module),
    packages=sam2.modeling.__path__[0] == os.path.join(folder, "modeling"),
)
