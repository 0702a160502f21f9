"""Old outputs are removed from the state while a video is tracked, and recent ones have no map."""

from common import click, frame, save, torch, track, video_predictor

predictor = video_predictor()
state = click(predictor)
outputs = state["output_dict_per_obj"]
masks, stored = [], []
for number, _, logits in predictor.propagate_in_video(state):
    masks.append(logits.clone())
    tracked = outputs[0]["non_cond_frame_outputs"]
    for old in [f for f in tracked if f < number - 1]:
        removed = tracked.pop(old)
        assert set(removed) >= {"maskmem_features", "maskmem_pos_enc", "pred_masks", "obj_ptr"}
    stored.append(len(tracked))
changed = torch.cat(masks)
state["output_dict_per_obj"][0]["non_cond_frame_outputs"].clear()
again = [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]
shapes = {
    name: list(value.shape)
    for name, value in state["output_dict_per_obj"][0]["cond_frame_outputs"][0].items()
    if isinstance(value, torch.Tensor)
}
save(
    plain=track(predictor),
    changed=changed,
    again=torch.cat(again),
    stored=stored,
    shapes=shapes,
    size=[state["video_height"], state["video_width"], state["num_frames"], *frame(0).shape],
)
