"""`sam2.modeling.sam2_utils`."""

from __future__ import annotations

from sam2_fast.data.clicks import get_next_point as get_next_point
from sam2_fast.data.clicks import sample_box_points as sample_box_points
from sam2_fast.data.clicks import (
    sample_one_point_from_error_center as sample_one_point_from_error_center,
)
from sam2_fast.data.clicks import (
    sample_random_points_from_errors as sample_random_points_from_errors,
)
from sam2_fast.model.layers import MLP as MLP
from sam2_fast.model.layers import DropPath as DropPath
from sam2_fast.model.layers import LayerNorm2d as LayerNorm2d
from sam2_fast.model.layers import get_activation_fn as get_activation_fn
from sam2_fast.model.layers import get_clones as get_clones
from sam2_fast.model.position import get_1d_sine_pe as get_1d_sine_pe
from sam2_fast.official.closest_frames import (
    select_closest_cond_frames as select_closest_cond_frames,
)
