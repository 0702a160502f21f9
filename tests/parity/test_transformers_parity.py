"""The second peer: Hugging Face transformers at equal weights, read from a safetensors file in its
own layout.

Runs in its own process: transformers does not import beside the official package's torchvision.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2].parent / "shared" / "tools"

IMAGE = """
import sys, torch, transformers_peer as peer
from safetensors.torch import save_file
from sam2_fast.build_sam import build_sam2
from sam2_fast.types import Points


def alive(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() > 1 and p.std() < 1e-5:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


size, folder = sys.argv[1], sys.argv[2]
name = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}[size]
ours = alive(build_sam2(name, seed=1, device="cpu", apply_postprocessing=False))
wide = build_sam2(
    None, ours.state_dict(), device="cpu", dtype=torch.float64, apply_postprocessing=False
)
theirs = peer.to_hf_video(ours.state_dict(), size)
save_file(
    {k: v.contiguous().clone() for k, v in theirs.state_dict().items()},
    folder + "/model.safetensors",
)
again = build_sam2(
    None, folder + "/model.safetensors", device="cpu"
)  # size and version are read off the file
assert all(torch.equal(a, again.state_dict()[k]) for k, a in ours.state_dict().items()), (
    "weights through the HF layout and back"
)
assert again.config == ours.config
image_model = peer.to_hf_image(ours.state_dict(), size)
picture = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2))
clicks = torch.tensor([[[500.0, 375.0], [300.0, 600.0]]])
labels = torch.tensor([[1, 0]], dtype=torch.int32)
with torch.no_grad():
    embedded = image_model.get_image_embeddings(picture)
    result = {}
    for name, model in (("ours", ours), ("wide", wide)):
        features = model.encode_image(picture.to(model.dtype))
        low = model.without_memory(features.low)
        found = model.decode(low, features, Points(clicks, labels), None, True)
        result[name] = (low, found.logits, found.iou)
    out = image_model(
        image_embeddings=embedded,
        input_points=clicks[None],
        input_labels=labels[None],
        multimask_output=True,
    )
    peers = (embedded[-1], out.pred_masks[0], out.iou_scores[0])
for name, a, b, truth in zip(("embedding", "logits", "iou"), result["ours"], peers, result["wide"]):
    ours_error, peer_error = (
        (a.double() - truth).abs().max().item(),
        (b.double() - truth).abs().max().item(),
    )
    print(f"{name}: ours {ours_error:.2e}, transformers {peer_error:.2e}")
    assert ours_error <= 2 * peer_error, name
print("EQUAL")
"""

VIDEO = """
import sys, numpy as np, torch, torch.nn.functional as F, transformers_peer as peer
from sam2_fast.build_sam import build_sam2_video_predictor

from sam2_fast.io.transforms import normalize_frame, resize_frame

frames, height, width = 5, 96, 128
options = [
    "++model.binarize_mask_from_pts_for_mem_enc=true",
    "++model.dynamic_multimask_via_stability=true",
]
ours = build_sam2_video_predictor(
    "tiny", seed=1, device="cpu", hydra_overrides_extra=options, apply_postprocessing=False
)
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for p in ours.parameters():
        if p.numel() > 1 and p.std() < 1e-5:
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
theirs = peer.to_hf_video(ours.state_dict(), "t")
clip = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
state = ours.init_state(clip)
session = peer.hf_video_session(
    torch.stack([normalize_frame(resize_frame(f, 1024)) for f in clip]), (height, width)
)
clicks = {1: [[40.0, 50.0]], 2: [[90.0, 30.0]]}
for i, xy in clicks.items():
    ours.add_new_points_or_box(state, 0, i, xy, [1])
    scaled = np.array(xy) / [width, height] * 1024
    peer.hf_add_points(session, 0, i, scaled, [1])
mine = {f: m.clone() for f, _, m in ours.propagate_in_video(state)}
with torch.inference_mode():
    for out in theirs.propagate_in_video_iterator(session, start_frame_idx=0):
        masks = F.interpolate(
            out.pred_masks.float(), size=(height, width), mode="bilinear", align_corners=False
        )
        overlap = ((masks > 0) & (mine[out.frame_idx] > 0)).sum().item() / max(
            1, ((masks > 0) | (mine[out.frame_idx] > 0)).sum().item()
        )
        difference = (masks - mine[out.frame_idx]).abs().max().item()
        print(f"frame {out.frame_idx}: IoU {overlap:.5f}, largest difference {difference:.1e}")
        assert overlap >= 0.999 and masks.shape == mine[out.frame_idx].shape
print("EQUAL")
"""


def run(script: str, *arguments: str) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed (pip install sam2-fast[parity])")
    if not (TOOLS / "transformers_peer.py").is_file():
        pytest.skip("no transformers_peer.py in ../shared/tools")
    environment = {**os.environ, "PYTHONPATH": str(TOOLS), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert found.returncode == 0 and found.stdout.strip().endswith("EQUAL"), (
        found.stdout[-1500:] + found.stderr[-3000:]
    )


@pytest.mark.parametrize(
    "size", ["t", *(pytest.param(s, marks=pytest.mark.slow) for s in ("s", "b+", "l"))]
)
def test_images_equal_transformers_and_its_weights_file_loads(size: str, tmp_path: Path) -> None:
    run(IMAGE, size, str(tmp_path))


@pytest.mark.slow
def test_videos_equal_transformers() -> None:
    run(VIDEO)
