"""Functions and classes imported from the modules that define them, and called."""

import sys

import torch
from common import save
from sam2.modeling.backbones.hieradet import MultiScaleAttention, MultiScaleBlock, do_pool
from sam2.modeling.backbones.image_encoder import FpnNeck
from sam2.modeling.backbones.utils import PatchEmbed, window_partition, window_unpartition
from sam2.modeling.memory_encoder import CXBlock, Fuser
from sam2.modeling.position_encoding import apply_rotary_enc, compute_axial_cis, init_t_xy
from sam2.modeling.sam.transformer import Attention, RoPEAttention, TwoWayAttentionBlock
from sam2.modeling.sam2_base import NO_OBJ_SCORE, MaskDecoder
from sam2.utils.misc import AsyncVideoFrameLoader, _load_img_as_tensor, concat_points
from sam2.utils.misc import load_video_frames as load

kinds = [MultiScaleAttention, MultiScaleBlock, FpnNeck, PatchEmbed, CXBlock, Fuser, Attention]
kinds += [RoPEAttention, TwoWayAttentionBlock, MaskDecoder, AsyncVideoFrameLoader]
x = torch.arange(2 * 10 * 13 * 3, dtype=torch.float32).reshape(2, 10, 13, 3)
windows, padded = window_partition(x, 4)
q, k = torch.linspace(0, 1, 192).view(1, 1, 12, 16), torch.linspace(2, 3, 384).view(1, 1, 24, 16)
cis, points = compute_axial_cis(16, 4, 3), torch.ones(1, 2, 2)
first = concat_points(None, points, torch.ones(1, 2))
video = load(sys.argv[2], 64, True)
lazy, *size = load(sys.argv[2], 64, True, async_loading_frames=True)
save(
    names=[kind.__name__ for kind in kinds],
    windows=[windows, list(padded), window_unpartition(windows, 4, padded, (10, 13))],
    pooled=do_pool(x, torch.nn.MaxPool2d(2, 2), torch.nn.Identity()),
    rotated=[torch.view_as_real(cis), *init_t_xy(4, 3), *apply_rotary_enc(q, k, cis, True)],
    points=[first, concat_points(first, 2 * points, torch.zeros(1, 2)), NO_OBJ_SCORE],
    frames=[_load_img_as_tensor(f"{sys.argv[2]}/00001.jpg", 64), video, lazy[1], size, len(lazy)],
)
