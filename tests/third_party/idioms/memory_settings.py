"""Settings of the memory that programs change on a predictor before they track."""

from common import save, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
results = {}
for name, value in {
    "num_maskmem": 3,
    "memory_temporal_stride_for_eval": 2,
    "max_obj_ptrs_in_encoder": 2,
    "sigmoid_scale_for_mem_enc": 10.0,
    "binarize_mask_from_pts_for_mem_enc": False,
    "use_obj_ptrs_in_encoder": False,
    "multimask_output_for_tracking": False,
}.items():
    before = getattr(predictor, name)
    setattr(predictor, name, value)
    results[name] = track(predictor)
    setattr(predictor, name, before)
predictor.num_maskmem = 0
save(
    plain=plain,
    changed_no_memory=track(predictor),
    **{f"changed_{k}": v for k, v in results.items()},
)
