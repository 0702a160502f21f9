"""Our models against Hugging Face transformers with the same weights.

The weights are read from a safetensors file in the layout of transformers. The comparison runs in
another process because transformers cannot be imported together with the official package's
torchvision.
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


def randomize_constants(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() > 1 and p.std() < 1e-5:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


size, folder = sys.argv[1], sys.argv[2]
name = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}[size]
ours = build_sam2(name, seed=1, device="cpu", apply_postprocessing=False)
randomize_constants(ours)
exact = build_sam2(
    None, ours.state_dict(), device="cpu", dtype=torch.float64, apply_postprocessing=False
)
hf_weights = peer.to_hf_video(ours.state_dict(), size).state_dict()
path = folder + "/model.safetensors"
save_file({k: v.contiguous().clone() for k, v in hf_weights.items()}, path)
# The configuration is read from the file.
loaded = build_sam2(None, path, device="cpu")
for key, weight in ours.state_dict().items():
    assert torch.equal(weight, loaded.state_dict()[key]), key
assert loaded.config == ours.config
image_model = peer.to_hf_image(ours.state_dict(), size)
picture = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(2))
clicks = torch.tensor([[[500.0, 375.0], [300.0, 600.0]]])
labels = torch.tensor([[1, 0]], dtype=torch.int32)
with torch.no_grad():
    embedded = image_model.get_image_embeddings(picture)
    result = {}
    for name, model in (("ours", ours), ("exact", exact)):
        features = model.encode_image(picture.to(model.dtype))
        low = model.without_memory(features.low)
        masks = model.decode(low, features, Points(clicks, labels), None, True)
        result[name] = (low, masks.logits, masks.iou)
    out = image_model(
        image_embeddings=embedded,
        input_points=clicks[None],
        input_labels=labels[None],
        multimask_output=True,
    )
    peers = (embedded[-1], out.pred_masks[0], out.iou_scores[0])
names = ("embedding", "logits", "iou")
for name, a, b, truth in zip(names, result["ours"], peers, result["exact"]):
    our_error = (a.double() - truth).abs().max().item()
    peer_error = (b.double() - truth).abs().max().item()
    print(f"{name}: ours {our_error:.2e}, transformers {peer_error:.2e}")
    assert our_error <= 2 * peer_error, name
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
hf_model = peer.to_hf_video(ours.state_dict(), "t")
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
logits = {f: m.clone() for f, _, m in ours.propagate_in_video(state)}
with torch.inference_mode():
    for out in hf_model.propagate_in_video_iterator(session, start_frame_idx=0):
        actual = logits[out.frame_idx]
        expected = F.interpolate(
            out.pred_masks.float(), size=(height, width), mode="bilinear", align_corners=False
        )
        intersection = ((expected > 0) & (actual > 0)).sum().item()
        iou = intersection / max(1, ((expected > 0) | (actual > 0)).sum().item())
        difference = (expected - actual).abs().max().item()
        print(f"frame {out.frame_idx}: IoU {iou:.5f}, largest difference {difference:.1e}")
        assert iou >= 0.999 and expected.shape == actual.shape
print("EQUAL")
"""


def run(script: str, *arguments: str) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed (pip install sam2-fast[parity])")
    if not (TOOLS / "transformers_peer.py").is_file():
        pytest.skip("no transformers_peer.py in ../shared/tools")
    environment = {**os.environ, "PYTHONPATH": str(TOOLS), "HF_HUB_OFFLINE": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert completed.returncode == 0 and completed.stdout.strip().endswith("EQUAL"), (
        completed.stdout[-1500:] + completed.stderr[-3000:]
    )


@pytest.mark.parametrize(
    "size", ["t", *(pytest.param(s, marks=pytest.mark.slow) for s in ("s", "b+", "l"))]
)
def test_images_equal_transformers_and_its_weights_file_loads(size: str, tmp_path: Path) -> None:
    run(IMAGE, size, str(tmp_path))


@pytest.mark.slow
def test_videos_equal_transformers() -> None:
    run(VIDEO)
