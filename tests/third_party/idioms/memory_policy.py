"""A memory policy: an assigned method drops memories of frames before the model reads them."""

import types

from common import save, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
original = predictor._prepare_memory_conditioned_features
calls, fields = [], set()


def policy(self, frame_idx, is_init_cond_frame, output_dict, **arguments):
    memories = output_dict["non_cond_frame_outputs"]
    calls.append((frame_idx, is_init_cond_frame, sorted(memories), sorted(arguments)))
    fields.update(name for memory in memories.values() for name in memory)
    chosen = {t: memory for t, memory in memories.items() if t % 2 == 0}
    return original(
        frame_idx=frame_idx,
        is_init_cond_frame=is_init_cond_frame,
        output_dict={**output_dict, "non_cond_frame_outputs": chosen},
        **arguments,
    )


predictor._prepare_memory_conditioned_features = types.MethodType(policy, predictor)
changed = track(predictor)
del predictor._prepare_memory_conditioned_features
save(plain=plain, changed=changed, same=track(predictor), calls=calls, fields=sorted(fields))
