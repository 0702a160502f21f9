"""`sam2.modeling.backbones.image_encoder`: the class in our models, for `isinstance`.

Its constructor takes our configuration.
"""

from sam2_fast.model.image_encoder import ImageEncoder as ImageEncoder
