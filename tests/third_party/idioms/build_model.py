"""A whole model is built by hand, with the arguments of the official constructors."""

import sys

import torch
from common import SIZE, image_model, image_predictor, save, segment
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine as Sine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base

ON = """directly_add_no_mem_embed use_mask_input_as_output_without_sam no_obj_embed_spatial
    use_high_res_features_in_sam multimask_output_in_sam iou_prediction_use_sigmoid pred_obj_scores
    pred_obj_scores_mlp use_obj_ptrs_in_encoder proj_tpos_enc_in_obj_ptrs fixed_no_obj_ptr
    use_signed_tpos_enc_to_obj_ptrs use_mlp_for_obj_ptr_proj use_multimask_token_for_obj_ptr"""
pos = dict(window_pos_embed_bkg_spatial_size=(7, 7))
trunk = Hiera(stages=(1, 2, 7, 2), global_att_blocks=(5, 7, 9), **pos)
levels = dict(fpn_interp_model="nearest", fpn_top_down_levels=[2, 3])
neck = FpnNeck(Sine(256), 256, trunk.channel_list, **levels)
rope = RoPEAttention(256, num_heads=1), RoPEAttention(256, 1, kv_in_dim=64, rope_k_repeat=True)
layer = MemoryAttentionLayer("relu", rope[1], 256, 2048, 0.1, False, True, False, rope[0])
sampler = MaskDownSampler(kernel_size=3, stride=2, padding=1)
encoder = MemoryEncoder(64, sampler, Fuser(CXBlock(256), 2), Sine(64))
parts = ImageEncoder(trunk, neck, scalp=1), MemoryAttention(256, True, layer, 4), encoder
model = SAM2Base(*parts, 7, SIZE, **dict.fromkeys(ON.split(), True)).eval()
model.load_state_dict(torch.load(sys.argv[1], map_location="cpu", weights_only=True)["model"])
save(plain=segment(image_predictor(model)), same=segment(image_predictor(image_model())))
