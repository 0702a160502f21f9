"""`sam2.modeling.memory_attention`: the class of our models, for `isinstance`; its constructor
takes our configuration.
"""

from sam2_fast.model.memory_attention import MemoryAttention as MemoryAttention
from sam2_fast.model.memory_attention import MemoryAttentionLayer as MemoryAttentionLayer
