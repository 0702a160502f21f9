"""`sam2.modeling.position_encoding`."""

from sam2_fast.model.position import PositionEmbeddingRandom as PositionEmbeddingRandom
from sam2_fast.model.position import PositionEmbeddingSine as PositionEmbeddingSine
from sam2_fast.model.rotary import apply_rotary_enc as apply_rotary_enc
from sam2_fast.model.rotary import compute_axial_cis as compute_axial_cis
from sam2_fast.model.rotary import init_t_xy as init_t_xy
from sam2_fast.model.rotary import reshape_for_broadcast as reshape_for_broadcast
