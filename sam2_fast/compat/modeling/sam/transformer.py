"""`sam2.modeling.sam.transformer`: the classes in our models.

Their constructors have the official arguments.
"""

from sam2_fast.model.layers import MLP as MLP
from sam2_fast.model.rope_attention import RoPEAttention as RoPEAttention
from sam2_fast.model.two_way_transformer import Attention as Attention
from sam2_fast.model.two_way_transformer import TwoWayAttentionBlock as TwoWayAttentionBlock
from sam2_fast.model.two_way_transformer import TwoWayTransformer as TwoWayTransformer
