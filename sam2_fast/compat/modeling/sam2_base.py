"""`sam2.modeling.sam2_base`."""

from sam2_fast.official_steps import NO_OBJ_SCORE as NO_OBJ_SCORE
from sam2_fast.sam2_base import SAM2Base as SAM2Base
