"""`sam2.modeling.memory_attention`: the classes in our models.

Their constructors have the official arguments.
"""

from sam2_fast.model.memory_attention import MemoryAttention as MemoryAttention
from sam2_fast.model.memory_attention import MemoryAttentionLayer as MemoryAttentionLayer
from sam2_fast.model.rope_attention import RoPEAttention as RoPEAttention
