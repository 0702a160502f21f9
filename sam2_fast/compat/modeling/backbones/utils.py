"""`sam2.modeling.backbones.utils`: the class in our models, for `isinstance`.

Its constructor has our arguments.
"""

from sam2_fast.model.hiera import PatchEmbed as PatchEmbed
