"""What it costs to find out that parts may be fused, and what a hook costs.

The predicate is timed for a frame: all examinations of the modules that an untouched model makes.
Encoding an image is timed with untouched parts, with a forward hook on one block of the image
encoder, and with a hook on every module, so that all of them are called. Results are proved equal
first. With `--quick` the images have 256 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.predictors import clip, is_close
from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.build_sam import build_sam2_video_predictor
from sam2_fast.config import PRESETS
from sam2_fast.model.fusion import Fusion
from sam2_fast.official.overrides import needs_official_steps

RUNS = 100  # of the predicate in one measurement


def predicate(name: str, size: str, options: Options) -> Iterator[Row]:
    """Time the examinations of one tracked frame without CUDA graphs."""
    predictor = build_sam2_video_predictor(size, device=options.device, image_size=256, seed=0)
    predictor.graphs = None
    calls: list[Callable[[], Any]] = []
    original = Fusion._examine

    def recorded(fusion: Fusion[Any], roots: Any, again: bool = False) -> Any:
        calls.append(partial(original, fusion, roots))
        return original(fusion, roots, again)

    state = predictor.init_state(clip(3))
    predictor.add_new_points_or_box(state, 0, 1, [[60, 100]], [1])
    for frame, _, _ in predictor.propagate_in_video(state):
        if frame == 1:
            break
    with patch.object(Fusion, "_examine", recorded):
        list(predictor.propagate_in_video(state, 2, 0))
    require(not predictor.unfused_parts(), name, "the model")

    def examine() -> None:
        for _ in range(RUNS):
            needs_official_steps(predictor)
            for call in calls:
                call()

    times = {"predicate": [t / RUNS for t in interleaved({"": examine}, options)[""]]}
    modules = sum(1 for _ in predictor.modules())
    for row in rows(name, times):
        notes = {"us": round(1000 * row.median_ms, 1), "calls": len(calls), "modules": modules}
        yield row.with_notes(notes)


def observe(model: Any, modules: list[torch.nn.Module]) -> Any:
    """`model` with a forward hook on each of the modules."""
    for module in modules:
        module.register_forward_hook(lambda *_: None)
    return model


def encoder(name: str, size: str, image_size: int, options: Options) -> Iterator[Row]:
    """Time the image encoder as it is, with a hook on one block, and with hooks on all modules."""
    model = build_sam2_video_predictor(size, device=options.device, image_size=image_size, seed=0)
    image = torch.randn(1, 3, image_size, image_size, device=options.device)
    one, all_ = copy.deepcopy(model), copy.deepcopy(model)
    blocks = one.image_encoder.trunk.blocks
    models = {
        "no hook": model,
        "a hook on one block": observe(one, [blocks[len(blocks) // 2]]),
        "a hook on every module": observe(all_, [*all_.modules()]),
    }
    with torch.inference_mode():
        runs = {label: partial(m.encode_image, image) for label, m in models.items()}
        expected = runs["no hook"]()
        for label, run in runs.items():
            require(all(map(is_close, run(), expected)), name, label)
        times = interleaved(runs, options)
    base = sorted(times["no hook"])[len(times["no hook"]) // 2]
    for row in rows(name, times):
        yield row.with_notes({"ratio": round(row.median_ms / base, 3)})


def measure(options: Options) -> Iterator[Case]:
    """The predicate for every size, then the image encoder of two sizes."""
    for size in ("nano", *PRESETS):
        yield Case(f"predicate of a frame, {size}", predicate, (size, options))
    image_size = 256 if options.quick else 1024
    for size in ("tiny",) if options.quick else ("tiny", "large"):
        name = f"image encoder, {size}, {image_size} px"
        yield Case(name, encoder, (size, image_size, options))
