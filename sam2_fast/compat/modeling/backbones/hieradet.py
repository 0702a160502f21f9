"""`sam2.modeling.backbones.hieradet`: the classes in our models.

Their constructors have the official arguments.
"""

from sam2_fast.model.hiera import Hiera as Hiera
from sam2_fast.model.hiera import MultiScaleAttention as MultiScaleAttention
from sam2_fast.model.hiera import MultiScaleBlock as MultiScaleBlock
from sam2_fast.model.hiera import PatchEmbed as PatchEmbed
from sam2_fast.model.hiera import do_pool as do_pool
from sam2_fast.model.layers import MLP as MLP
from sam2_fast.model.layers import DropPath as DropPath
