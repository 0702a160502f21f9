"""Names replaced in modules of predictors: a progress bar, holes, absent objects, duplicates."""

from unittest import mock

import sam2.automatic_mask_generator as automatic
import sam2.sam2_video_predictor as video
import torch
from common import POINT, click, frame, image_model, save, track, video_predictor


def own(name, function):
    return mock.patch(f"sam2.sam2_video_predictor.{name}", function)


predictor, bars = video_predictor(), []
plain, bar = track(predictor), video.tqdm
video.tqdm = lambda frames, desc: bars.append((desc, [*frames])) or bars[-1][1]
same = track(predictor)
video.tqdm = bar
with own("fill_holes_in_mask_scores", lambda mask, max_area: mask - max_area):
    changed = track(predictor)
with own("NO_OBJ_SCORE", -5.0):
    state = click(predictor)
    late = predictor.add_new_points_or_box(state, 1, 2, points=POINT, labels=[1])[2]
generator = automatic.SAM2AutomaticMaskGenerator(
    image_model(), points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
)
generator.predictor._bb_feat_sizes = [(32, 32), (16, 16), (8, 8)]
with mock.patch("sam2.automatic_mask_generator.batched_nms", return_value=torch.arange(2)):
    boxes = [record["bbox"] for record in generator.generate(frame(0))]
save(plain=plain, same=same, changed=changed, bars=bars, late=late, boxes=boxes)
