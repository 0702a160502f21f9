"""A subclass overrides private steps of the predictor: results have entries of its own."""

from common import click, save, torch, track, video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

calls = []


class Scored(SAM2VideoPredictor):
    def _run_single_frame_inference(self, *args, **kwargs):
        output, masks = super()._run_single_frame_inference(*args, **kwargs)
        output["area"] = int((masks > 0).sum())
        kwargs["inference_state"].setdefault("areas", []).append(output["area"])
        return output, masks

    def _run_memory_encoder(self, *args, **kwargs):
        calls.append("memory")
        maps, positions = super()._run_memory_encoder(*args, **kwargs)
        return maps * 0.5, positions

    def _get_orig_video_res_output(self, inference_state, any_res_masks):
        calls.append("resize")
        return super()._get_orig_video_res_output(inference_state, any_res_masks)


plain = video_predictor()
predictor = video_predictor()
predictor.__class__ = Scored
state = click(predictor)
masks = [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]
tracked = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
areas = {frame: output["area"] for frame, output in tracked.items()}
save(plain=track(plain), changed=torch.cat(masks), areas=areas, all=state["areas"], calls=calls)
