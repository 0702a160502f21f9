"""`sam2.modeling.memory_attention`: the classes in our models, for `isinstance`.

Their constructors take our configuration.
"""

from sam2_fast.model.memory_attention import MemoryAttention as MemoryAttention
from sam2_fast.model.memory_attention import MemoryAttentionLayer as MemoryAttentionLayer
