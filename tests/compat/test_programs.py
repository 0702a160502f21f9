"""Programs that are written for the official package run with ours, unmodified."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from tests.compat.programs import execute, run

SHIM = (sys.executable, "-m", "sam2_fast.compat")
PROGRAM = textwrap.dedent(
    """
    import sys
    import numpy as np
    import torch
    from PIL import Image
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.build_sam import build_sam2, build_sam2_video_predictor
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    checkpoint, frames = sys.argv[1:]
    model_cfg = "configs/sam2.1/sam2.1_hiera_t.yaml"
    small = ["++model.image_size=128"]

    predictor = SAM2ImagePredictor(
        build_sam2(model_cfg, checkpoint, device="cpu", hydra_overrides_extra=small)
    )
    image = np.array(Image.open(frames + "/00000.jpg").convert("RGB"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(image)
        masks, scores, logits = predictor.predict(
            point_coords=np.array([[60, 40]]), point_labels=np.array([1])
        )
        best = np.argmax(scores)
        masks, _, _ = predictor.predict(
            point_coords=np.array([[60, 40]]),
            point_labels=np.array([1]),
            mask_input=logits[best, :, :][None],
            multimask_output=False,
        )
    assert masks.shape == (1, *image.shape[:2]) and masks.dtype == np.float32, (
        masks.shape,
        masks.dtype,
    )

    predictor = build_sam2_video_predictor(
        model_cfg, checkpoint, device="cpu", hydra_overrides_extra=small
    )
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = predictor.init_state(frames)
        frame_idx, object_ids, masks = predictor.add_new_points_or_box(
            state, frame_idx=0, obj_id=1, points=[[60, 40]], labels=[1]
        )
        assert masks.shape == (1, 1, *image.shape[:2])
        video_segments = {}
        for frame_idx, object_ids, masks in predictor.propagate_in_video(state):
            video_segments[frame_idx] = {
                i: (masks[k] > 0.0).cpu().numpy() for k, i in enumerate(object_ids)
            }
    assert sorted(video_segments) == list(range(state["num_frames"])), video_segments.keys()
    predictor.reset_state(state)

    sam2 = build_sam2(
        model_cfg, checkpoint, device="cpu", apply_postprocessing=False, hydra_overrides_extra=small
    )
    generator = SAM2AutomaticMaskGenerator(
        sam2, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )
    for mask in sorted(generator.generate(image), key=lambda x: x["area"], reverse=True):
        assert mask["segmentation"].shape == image.shape[:2]
    print("DONE", len(video_segments))
    """
)


def test_the_examples_of_the_official_readme_run(
    tmp_path: Path, checkpoint: Path, frames: Path
) -> None:
    """Three examples in one script, in another process."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    output = run([*SHIM, str(script), str(checkpoint), str(frames)], tmp_path)
    assert output.split() == ["DONE", "3"]


def test_the_command_prints_its_usage_and_names_a_missing_program(tmp_path: Path) -> None:
    for arguments, message in (([], "usage:"), (["absent.py"], "absent.py: no such file")):
        completed = execute([*SHIM, *arguments], tmp_path)
        assert completed.returncode == 2
        assert message in completed.stderr


def test_a_program_has_its_own_exit_code_arguments_and_folder(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 7\n")
    (tmp_path / "program.py").write_text(
        "import sys, neighbour\nsys.exit(neighbour.VALUE + len(sys.argv))\n"
    )
    for target in ([str(tmp_path / "program.py")], ["-m", "program"]):
        assert execute([*SHIM, *target, "--a", "b"], tmp_path).returncode == 10
