"""`sam2.modeling.sam2_base`."""

from sam2_fast.official.base import SAM2Base as SAM2Base
from sam2_fast.official.steps import NO_OBJ_SCORE as NO_OBJ_SCORE
