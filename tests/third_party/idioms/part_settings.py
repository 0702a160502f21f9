"""Settings of parts that programs change after a model was built."""

from common import image_model, image_predictor, save, segment, track, video_predictor

predictor, tracker = image_predictor(image_model()), video_predictor()
neck, decoder = predictor.model.image_encoder.neck, predictor.model.sam_mask_decoder
blocks = predictor.model.image_encoder.trunk.blocks
layer = tracker.memory_attention.layers[0]
plain, plain_video = segment(predictor), track(tracker)
results = {}
for name, (owner, setting, value) in {
    "average": (neck, "fuse_type", "avg"),
    "levels": (neck, "fpn_top_down_levels", [1, 2, 3]),
    "interpolation": (neck, "fpn_interp_model", "bilinear"),
    "presence": (decoder, "pred_obj_scores", False),
    "fine": (decoder, "use_high_res_features", False),
    "windows": (blocks[0], "window_size", 4),
    "heads": (blocks[5].attn, "num_heads", 2),
    "norm": (blocks[5].norm1, "eps", 0.1),
}.items():
    before = getattr(owner, setting)
    setattr(owner, setting, value)
    results[f"changed_{name}"] = segment(predictor)
    setattr(owner, setting, before)
results["same"] = segment(predictor)
layer.pos_enc_at_attn = layer.pos_enc_at_cross_attn_queries = True
save(plain=plain, **results, video=[plain_video, track(tracker)])
