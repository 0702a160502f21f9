"""`sam2.modeling.backbones.image_encoder`: the class of our models, for `isinstance`; its
constructor takes our configuration.
"""

from sam2_fast.model.image_encoder import ImageEncoder as ImageEncoder
