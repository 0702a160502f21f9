"""A wrapper tracks with the private steps of the predictor, on a state that it fills itself."""

import torch.nn.functional as F
from common import POINT, SIZE, save, sys, torch, track, video_predictor

predictor = video_predictor()
state = predictor.init_state(sys.argv[2])
index = predictor._obj_id_to_idx(state, "a")
point = torch.from_numpy(POINT / [state["video_width"], state["video_height"]] * SIZE)
inputs = {"point_coords": point.float()[None], "point_labels": torch.tensor([[1]])}
outputs = state["output_dict_per_obj"][index]
with torch.inference_mode():
    step = predictor._run_single_frame_inference
    first, masks = step(state, outputs, 0, 1, True, inputs, None, False, run_mem_encoder=False)
    high = F.interpolate(first["pred_masks"], (SIZE, SIZE), mode="bilinear", align_corners=False)
    first["maskmem_features"], first["maskmem_pos_enc"] = predictor._run_memory_encoder(
        state, 0, 1, high, first["object_score_logits"], is_mask_from_pts=True
    )
    outputs["cond_frame_outputs"][0] = first
    results = [masks]
    for t in range(1, 5):
        output, masks = step(state, outputs, t, 1, False, None, None, False, run_mem_encoder=True)
        outputs["non_cond_frame_outputs"][t] = output
        results.append(masks)
    same = predictor._get_orig_video_res_output(state, torch.cat(results))[1]
    merged = predictor._consolidate_temp_output_across_obj(state, 3, False, True)
names = [predictor._obj_idx_to_id(state, 0), predictor._get_obj_num(state), sorted(output)]
predictor._reset_tracking_results(state)
names += [len(outputs["cond_frame_outputs"]), state["obj_ids"]]
save(plain=track(predictor), same=same, merged=merged, names=names)
