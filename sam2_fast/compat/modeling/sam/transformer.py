"""`sam2.modeling.sam.transformer`: the class in our models, for `isinstance`.

Its constructor takes our configuration.
"""

from sam2_fast.model.two_way_transformer import TwoWayTransformer as TwoWayTransformer
