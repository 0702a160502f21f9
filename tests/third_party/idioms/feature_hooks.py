"""Hooks that extract features of chosen modules, read keyword arguments, and replace outputs."""

import torch
from common import image_model, image_predictor, save, segment

predictor = image_predictor(image_model())
encoder, decoder = predictor.model.image_encoder, predictor.model.sam_mask_decoder
features = {}


def store(name):
    return lambda module, args, output: features.update({name: output})


for k in (0, 5, 9):
    encoder.trunk.blocks[k].register_forward_hook(store(f"block {k}"))
encoder.neck.register_forward_hook(store("neck"))
encoder.register_forward_hook(store("encoder"))
decoder.register_forward_hook(store("decoder"))
decoder.register_forward_pre_hook(
    lambda module, args, kwargs: features.update(arguments=dict(kwargs)), with_kwargs=True
)
plain = segment(predictor)
extracted = dict(features)
steering = torch.linspace(-1, 1, 384)
handle = encoder.trunk.blocks[5].register_forward_hook(lambda m, args, y: y + steering)
changed = segment(predictor)
handle.remove()
save(plain=plain, changed=changed, same=segment(predictor), features=extracted)
