"""A subclass of the video predictor with its own track_step, given to a predictor that exists."""

from common import save, track, video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor


class Recorder(SAM2VideoPredictor):
    def track_step(self, frame_idx, is_init_cond_frame, *args, **kwargs):
        output = super().track_step(frame_idx, is_init_cond_frame, *args, **kwargs)
        self.steps.append(
            (frame_idx, is_init_cond_frame, kwargs["run_mem_encoder"], sorted(output))
        )
        if not is_init_cond_frame:
            output["pred_masks"] = output["pred_masks"] + 0.5
            output["obj_ptr"] = output["obj_ptr"] * 0.9
        return output


class SingleMask(SAM2VideoPredictor):
    def _use_multimask(self, is_init_cond_frame, point_inputs):
        return False


predictor = video_predictor()
plain = track(predictor)
predictor.__class__ = Recorder
predictor.steps = []
changed = track(predictor)
predictor.__class__ = SingleMask
single = track(predictor)
save(plain=plain, changed=changed, changed_single=single, steps=predictor.steps)
