"""Attributes that programs read, and the names, shapes and classes of parts."""

from common import save, video_predictor

NAMES = {
    "": "image_size num_maskmem hidden_dim mem_dim backbone_stride num_feature_levels "
    "use_high_res_features_in_sam use_obj_ptrs_in_encoder max_obj_ptrs_in_encoder "
    "sigmoid_scale_for_mem_enc sigmoid_bias_for_mem_enc max_cond_frames_in_attn pred_obj_scores "
    "memory_temporal_stride_for_eval sam_image_embedding_size sam_prompt_embed_dim fill_hole_area "
    "sam_mask_decoder_extra_args directly_add_no_mem_embed multimask_min_pt_num fixed_no_obj_ptr "
    "non_overlap_masks soft_no_obj_ptr add_all_frames_to_correct_as_cond training device",
    "image_encoder": "scalp",
    "image_encoder.trunk": "q_pool_blocks stage_ends global_att_blocks channel_list window_spec "
    "q_stride return_interm_layers window_pos_embed_bkg_spatial_size",
    "image_encoder.trunk.blocks.1": "dim dim_out window_size q_stride",
    "image_encoder.trunk.blocks.1.attn": "dim dim_out num_heads",
    "image_encoder.neck": "d_model backbone_channel_list fpn_top_down_levels fuse_type",
    "memory_attention": "num_layers d_model pos_enc_at_input batch_first",
    "memory_attention.layers.0": "d_model dim_feedforward dropout_value pos_enc_at_attn",
    "memory_attention.layers.0.cross_attn_image": "num_heads internal_dim kv_in_dim dropout_p",
    "sam_prompt_encoder": "embed_dim input_image_size image_embedding_size mask_input_size",
    "sam_mask_decoder": "num_mask_tokens num_multimask_outputs use_high_res_features "
    "transformer_dim dynamic_multimask_via_stability dynamic_multimask_stability_thresh",
    "sam_mask_decoder.transformer": "depth embedding_dim num_heads mlp_dim",
}
model = video_predictor()
parts = dict(model.named_modules())
values = {part: {n: str(getattr(parts[part], n)) for n in v.split()} for part, v in NAMES.items()}
shapes = {name: str(tuple(value.shape)) for name, value in model.state_dict().items()}
save(values=values, shapes=shapes, classes={k: type(part).__name__ for k, part in parts.items()})
