"""Parts of a video predictor compiled: a module, and the forward of another."""

import torch
from common import save, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
compiled = set()


def backend(name):
    def compile_graph(graph, inputs):
        compiled.add(name)
        return graph.forward

    return compile_graph


predictor.image_encoder = torch.compile(predictor.image_encoder, backend=backend("image"))
memory_encoder = predictor.memory_encoder
memory_encoder.forward = torch.compile(memory_encoder.forward, backend=backend("memory"))
kind = type(predictor.image_encoder).__name__
save(plain=plain, same=track(predictor), compiled=sorted(compiled), kind=kind)
