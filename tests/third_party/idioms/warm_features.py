"""Image features are computed in advance and put into `cached_features`, or changed there."""

from common import click, save, torch, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
state = click(predictor)


def features(number, scale=1.0):
    image = state["images"][number].float()[None]
    backbone_out = predictor.forward_image(image)
    backbone_out["backbone_fpn"] = [x * scale for x in backbone_out["backbone_fpn"]]
    return image, backbone_out


def tracked(scale=1.0):
    state = click(predictor)
    with torch.inference_mode():
        for number in range(5):
            state["cached_features"][number] = features(number, scale)
    outputs = [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]
    return torch.cat(outputs), sorted(state["cached_features"])


with torch.inference_mode():
    image, backbone_out = click(predictor)["cached_features"][0]
    state["cached_features"].clear()
    _, _, levels, positions, sizes = predictor._get_image_feature(state, 1, batch_size=2)
same, frames = tracked()
changed, _ = tracked(0.3)
cached = [image, backbone_out["backbone_fpn"], backbone_out["vision_pos_enc"]]
step = [levels, positions, [list(size) for size in sizes]]
save(plain=plain, same=same, changed=changed, frames=frames, cached=cached, step=step)
