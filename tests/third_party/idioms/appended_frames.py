"""A video grows: frames are appended to `images`, and the state is tracked on, frame by frame."""

from common import click, pixels, save, torch, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
state = click(predictor)
images = state["images"]
state["images"], state["num_frames"] = images[:2], 2
masks = [m.clone() for _, _, m in predictor.propagate_in_video(state)]
for number in range(2, 5):
    state["images"] = torch.cat([state["images"], images[number][None]])
    state["num_frames"] += 1
    masks += [m.clone() for _, _, m in predictor.propagate_in_video(state, number, 0)]

darker = click(predictor)
darker["images"] = [pixels(i)[0] * 0.4 for i in range(5)]
darker["cached_features"].clear()
predictor.add_new_points_or_box(darker, 0, 1, points=[[65.0, 50.0]], labels=[1])
changed = [m.clone() for _, _, m in predictor.propagate_in_video(darker)]
save(
    plain=plain,
    appended=torch.cat(masks),
    changed=torch.cat(changed),
    images=[list(images.shape), list(images[1].shape), images[1], torch.stack(list(images[3:]))],
)
