"""`sam2.modeling.backbones.image_encoder`: the classes in our models.

Their constructors have the official arguments.
"""

from sam2_fast.model.image_encoder import FpnNeck as FpnNeck
from sam2_fast.model.image_encoder import ImageEncoder as ImageEncoder
