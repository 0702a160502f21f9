"""`sam2.modeling.sam.mask_decoder`: the class of our models, for `isinstance`; its constructor
takes our configuration.
"""

from sam2_fast.model.mask_decoder import MaskDecoder as MaskDecoder
