"""Parts of a video predictor compiled: a module, and the forward of another."""

import torch
from common import save, track, video_predictor

predictor = video_predictor()
plain = track(predictor)
graphs = []


def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward


predictor.image_encoder = torch.compile(predictor.image_encoder, backend="eager")
predictor.memory_encoder.forward = torch.compile(predictor.memory_encoder.forward, backend=backend)
same = track(predictor)
save(plain=plain, same=same, compiled=len(graphs) > 0, kind=type(predictor.image_encoder).__name__)
