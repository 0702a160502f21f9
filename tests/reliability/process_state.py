"""What a library must not change in its process, and which public calls change it.

Run as a program: prints a JSON object of the changed quantities of each call.
"""

from __future__ import annotations

import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def process_state() -> dict[str, Any]:
    """The quantities, each comparable with ==."""
    backends = torch.backends
    root = logging.getLogger()
    umask = os.umask(0)
    os.umask(umask)
    return {
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "TF32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "matmul precision": torch.get_float32_matmul_precision(),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            backends.cudnn.deterministic,
            backends.cudnn.benchmark,
        ),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "MKLDNN": (backends.mkldnn.enabled, torch.backends.nnpack.is_available()),
        "anomaly detection": torch.is_anomaly_enabled(),
        "random numbers of torch": torch.get_rng_state().tolist(),
        "random numbers of numpy": str(np.random.get_state()),
        "random numbers of Python": random.getstate(),
        "errors of numpy": np.geterr(),
        "root logger": (root.level, list(map(id, root.handlers)), root.disabled),
        "logging": logging.root.manager.disable,
        "warning filters": list(warnings.filters),
        "showwarning": id(warnings.showwarning),
        "signals": [(s, signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "working directory": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "environment": dict(os.environ),
        "umask": umask,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "child processes": len(multiprocessing.active_children()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "open files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "hooks": (id(sys.excepthook), id(sys.unraisablehook), id(threading.excepthook)),
        "trace": (sys.gettrace(), sys.getprofile(), sys.getswitchinterval()),
        "import path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
    }


def calls(folder: Path) -> dict[str, Callable[[], object]]:
    """Public calls by name; later ones use the results of earlier ones."""
    import sam2_fast
    from sam2_fast import masks
    from sam2_fast.io.rle import decode_rle, encode_rle
    from sam2_fast.ops import connected_components, nms, small_components
    from tests.test_image_predictor import CLICK, SMALL, picture

    kept: dict[str, Any] = {}
    click = {"points": [[18, 20]], "labels": [1]}
    frames = np.stack([picture(seed) for seed in range(3)])

    def keep(name: str, make: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            kept[name] = make()

        return call

    def state_dict() -> dict[str, torch.Tensor]:
        return kept["model"].state_dict()

    def generator() -> Any:
        options = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
        return sam2_fast.SAM2AutomaticMaskGenerator(kept["model"], 2, **options)

    def refused() -> None:
        try:
            kept["image"].set_image(np.zeros((0, 3), np.uint8))
        except ValueError:
            return
        raise AssertionError

    bits = torch.zeros(1, 8, 8, dtype=torch.bool)
    bits[:, 2:5, 2:5] = True
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]])
    return {
        "build with a seed": keep(
            "model", lambda: sam2_fast.build_sam2(SMALL, device="cpu", seed=1)
        ),
        "build with weights": lambda: sam2_fast.build_sam2(SMALL, state_dict(), device="cpu"),
        "build for videos": keep(
            "video",
            lambda: sam2_fast.build_sam2_video_predictor(SMALL, state_dict(), device="cpu"),
        ),
        "build by overrides": lambda: sam2_fast.build_sam2(
            SMALL,
            state_dict(),
            device="cpu",
            hydra_overrides_extra=[
                "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true"
            ],
        ),
        "build in half precision": lambda: sam2_fast.build_sam2(
            SMALL, state_dict(), device="cpu", dtype=torch.bfloat16
        ),
        "save and load": lambda: (
            torch.save({"model": state_dict()}, folder / "small.pt"),
            sam2_fast.build_sam2(SMALL, folder / "small.pt", device="cpu"),
        ),
        "image predictor": keep("image", lambda: sam2_fast.SAM2ImagePredictor(kept["model"])),
        "set_image": lambda: kept["image"].set_image(picture()),
        "predict": lambda: kept["image"].predict(**CLICK),
        "predict outside": lambda: kept["image"].predict(np.array([[900, 30]]), np.array([1])),
        "get_image_embedding": lambda: kept["image"].get_image_embedding(),
        "set_image_batch": lambda: kept["image"].set_image_batch([picture(0), picture(1)]),
        "predict_batch": lambda: kept["image"].predict_batch([[[1, 2]]] * 2, [[1]] * 2),
        "a refused image": refused,
        "reset_predictor": lambda: kept["image"].reset_predictor(),
        "generator": keep("generator", generator),
        "generate": lambda: kept["generator"].generate(picture()),
        "connected_components": lambda: connected_components(bits),
        "small_components": lambda: small_components(bits, 4),
        "nms": lambda: nms(boxes, torch.tensor([1.0, 0.5]), 0.5),
        "masks.boxes": lambda: masks.boxes(bits),
        "encode_rle": lambda: decode_rle(encode_rle(bits[0].numpy())),
        "init_state": keep("session", lambda: kept["video"].init_state(frames)),
        "add_new_points_or_box": lambda: kept["video"].add_new_points_or_box(
            kept["session"], 0, 1, **click
        ),
        "add_new_mask": lambda: kept["video"].add_new_mask(
            kept["session"], 0, 2, np.eye(40, 60, dtype=bool)
        ),
        "propagate_in_video": lambda: list(kept["video"].propagate_in_video(kept["session"])),
        "frame_masks": lambda: list(kept["video"].frame_masks(kept["session"], 1)),
        "clear_all_prompts_in_frame": lambda: kept["video"].clear_all_prompts_in_frame(
            kept["session"], 0, 1
        ),
        "step": lambda: kept["video"].step(kept["video"].init_state(None), picture()),
        "remove_object": lambda: kept["video"].remove_object(kept["session"], 2),
        "reset_state": lambda: kept["video"].reset_state(kept["session"]),
    }


def changes() -> dict[str, list[str]]:
    """The quantities that each call changes, for those that change any."""
    import tests.test_image_predictor  # noqa: F401 - imports are no calls

    changed = {}
    torch.ones(64, 64) @ torch.ones(64, 64)  # torch starts its threads
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, call in calls(Path(folder)).items():
            before = process_state()
            call()
            after = process_state()
            names = [quantity for quantity in before if before[quantity] != after[quantity]]
            if names:
                changed[name] = names
    return changed


if __name__ == "__main__":
    print(json.dumps(changes()))
