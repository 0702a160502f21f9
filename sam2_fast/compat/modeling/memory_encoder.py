"""`sam2.modeling.memory_encoder`: the classes in our models, for `isinstance`.

Their constructors take our configuration.
"""

from sam2_fast.model.memory_encoder import MaskDownSampler as MaskDownSampler
from sam2_fast.model.memory_encoder import MemoryEncoder as MemoryEncoder
