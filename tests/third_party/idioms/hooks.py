"""Forward hooks and pre-hooks of every submodule, over an image and a video of three frames."""

from collections import Counter

from common import click, image_predictor, save, segment, video_predictor

STORED = (
    "image_encoder.trunk.blocks.3",
    "image_encoder.trunk.blocks.1.attn.qkv",
    "image_encoder.neck",
    "memory_attention.layers.1",
    "memory_attention.layers.0.cross_attn_image",
    "memory_encoder.fuser",
    "sam_mask_decoder.transformer",
    "sam_mask_decoder.output_hypernetworks_mlps.2",
    "sam_prompt_encoder",
)
predictor = video_predictor()
before, after, outputs = Counter(), Counter(), {}
for name, module in predictor.named_modules():
    module.register_forward_pre_hook(lambda m, args, name=name: before.update([name]))
    module.register_forward_hook(lambda m, args, output, name=name: after.update([name]))
    if name in STORED:
        module.register_forward_hook(lambda m, args, y, name=name: outputs.update({name: y}))
scores = segment(image_predictor(predictor))[1]
image_calls, image_outputs = dict(after), dict(outputs)
list(predictor.propagate_in_video(click(predictor), max_frame_num_to_track=2))
calls = {name: (before[name], after[name]) for name, _ in predictor.named_modules()}
save(calls=calls, image_calls=image_calls, image=image_outputs, video=outputs, scores=scores)
