"""`sam2.modeling.backbones.hieradet`: the class of our models, for `isinstance`; its constructor
takes our configuration.
"""

from sam2_fast.model.hiera import Hiera as Hiera
