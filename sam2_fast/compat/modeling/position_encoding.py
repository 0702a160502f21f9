"""`sam2.modeling.position_encoding`."""

from sam2_fast.model.position import PositionEmbeddingRandom as PositionEmbeddingRandom
from sam2_fast.model.position import PositionEmbeddingSine as PositionEmbeddingSine
