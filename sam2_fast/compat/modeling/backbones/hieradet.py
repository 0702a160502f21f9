"""`sam2.modeling.backbones.hieradet`: the class in our models, for `isinstance`.

Its constructor takes our configuration.
"""

from sam2_fast.model.hiera import Hiera as Hiera
