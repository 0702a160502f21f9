"""A subclass with an init_state of its own, which fills a dictionary from frames in memory."""

from common import POINT, click, pixels, save, torch, track, video_predictor
from sam2.sam2_video_predictor import SAM2VideoPredictor

PER_OBJECT = ("point_inputs", "mask_inputs", "output_dict", "temp_output_dict", "frames_tracked")


class OfFrames(SAM2VideoPredictor):
    @torch.inference_mode()
    def init_state(self, images, height, width):
        state = {"images": images, "num_frames": len(images)}
        state.update(video_height=height, video_width=width, device=self.device)
        state.update(storage_device=self.device, offload_video_to_cpu=False)
        state.update(offload_state_to_cpu=False, cached_features={}, constants={})
        state.update(obj_id_to_idx={}, obj_idx_to_id={}, obj_ids=[])
        state.update({f"{name}_per_obj": {} for name in PER_OBJECT})
        self._get_image_feature(state, frame_idx=0, batch_size=1)
        return state


predictor = video_predictor()
plain, official = track(predictor), click(predictor)
predictor.__class__ = OfFrames
state = predictor.init_state(official["images"][:], *plain.shape[-2:])
predictor.add_new_points_or_box(state, 0, 1, points=POINT, labels=[1])
same = torch.cat([logits.clone() for _, _, logits in predictor.propagate_in_video(state)])
state = predictor.init_state([pixels(i)[0] * 0.4 for i in range(5)], 40, 60)
_, ids, changed = predictor.add_new_points_or_box(state, 0, "a", points=POINT / 2, labels=[1])
ids = list(ids)  # the official list is cleared later
predictor.remove_object(state, "a")
save(plain=plain, same=same, changed=changed, ids=ids, left=state["obj_ids"], keys=sorted(state))
