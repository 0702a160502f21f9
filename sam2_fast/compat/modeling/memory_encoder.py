"""`sam2.modeling.memory_encoder`: the classes in our models.

Their constructors have the official arguments.
"""

from sam2_fast.model.layers import DropPath as DropPath
from sam2_fast.model.layers import LayerNorm2d as LayerNorm2d
from sam2_fast.model.memory_encoder import CXBlock as CXBlock
from sam2_fast.model.memory_encoder import Fuser as Fuser
from sam2_fast.model.memory_encoder import MaskDownSampler as MaskDownSampler
from sam2_fast.model.memory_encoder import MemoryEncoder as MemoryEncoder
