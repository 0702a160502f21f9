"""`sam2.modeling.memory_attention`: the classes in our models, for `isinstance`.

Their constructors have our arguments.
"""

from sam2_fast.model.memory_attention import MemoryAttention as MemoryAttention
from sam2_fast.model.memory_attention import MemoryAttentionLayer as MemoryAttentionLayer
from sam2_fast.model.rope_attention import RoPEAttention as RoPEAttention
