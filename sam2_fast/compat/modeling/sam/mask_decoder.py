"""`sam2.modeling.sam.mask_decoder`: the class in our models, for `isinstance`.

Its constructor takes our configuration.
"""

from sam2_fast.model.mask_decoder import MaskDecoder as MaskDecoder
