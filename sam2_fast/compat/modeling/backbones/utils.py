"""`sam2.modeling.backbones.utils`: windows, and the class in our models, for `isinstance`.

Its constructor has our arguments.
"""

from sam2_fast.model.hiera import PatchEmbed as PatchEmbed
from sam2_fast.model.hiera import window_partition as window_partition
from sam2_fast.model.hiera import window_unpartition as window_unpartition
