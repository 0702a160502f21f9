"""`sam2.modeling.backbones.image_encoder`: the classes in our models, for `isinstance`.

Their constructors have our arguments.
"""

from sam2_fast.model.image_encoder import FpnNeck as FpnNeck
from sam2_fast.model.image_encoder import ImageEncoder as ImageEncoder
