"""`sam2.modeling.memory_encoder`: the class of our models, for `isinstance`; its constructor takes
our configuration.
"""

from sam2_fast.model.memory_encoder import MaskDownSampler as MaskDownSampler
from sam2_fast.model.memory_encoder import MemoryEncoder as MemoryEncoder
