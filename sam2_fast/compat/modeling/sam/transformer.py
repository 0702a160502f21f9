"""`sam2.modeling.sam.transformer`: the class of our models, for `isinstance`; its constructor takes
our configuration.
"""

from sam2_fast.model.two_way_transformer import TwoWayTransformer as TwoWayTransformer
