"""The forward pass of training: steps by frame, gradients of every part, and a falling loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam2_fast.config import Options, Sam2Config
from sam2_fast.data import SyntheticVideo, World
from sam2_fast.io.transforms import normalize_frame
from sam2_fast.model import Sam2
from sam2_fast.training import (
    Annotator,
    Batch,
    Clip,
    Plan,
    clip_losses,
    collate,
    require_finite,
    simulate,
)

SIZE = 64
LENGTH = 3
CONFIG = Sam2Config(
    dropout=0.0,
    embed_dim=16,
    stages=(1, 1, 1, 1),
    global_blocks=(2,),
    windows=(8, 4, 4, 2),
    image_size=SIZE,
    memory_layers=1,
    memory_ffn_dim=64,
    decoder_mlp_dim=64,
)


def clip(seed: int = 3) -> Clip:
    """A synthetic clip whose objects are visible on the first frame."""
    world = World(height=SIZE, width=SIZE, size=(0.2, 0.3), objects=(2, 2), absences=0.0, noise=0.0)
    video = SyntheticVideo(seed, LENGTH, world)
    truth = np.stack([[frame.labels == i for i in video.ids()] for frame in video])
    assert truth[0].any((1, 2)).all()
    return Clip(
        torch.stack([normalize_frame(torch.from_numpy(frame.image)) for frame in video]),
        torch.from_numpy(truth),
        seed,
    )


def batch(*seeds: int) -> Batch:
    return collate([clip(seed) for seed in seeds or (3,)])


def model() -> Sam2:
    """A model with random weights that predicts every object as present.

    Masks of absent objects are constants, without gradients.
    """
    torch.manual_seed(0)
    network = Sam2(CONFIG, Options(dynamic_multimask_via_stability=False))
    with torch.no_grad():
        network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    return network


def test_corrected_frames_have_a_step_for_each_prompt() -> None:
    clips = batch()
    plan = Plan(True, (0,), (0, 2), (0, 1, 2))
    frames = simulate(model(), clips, plan, np.random.default_rng(0), Annotator(clicks=2, box=0.0))
    assert [len(steps) for steps in frames] == [3, 1, 3]
    # Three masks for a single click, which is ambiguous; one mask for more clicks.
    assert [step.logits.shape[1] for step in frames[0]] == [3, 1, 1]
    for step in (step for steps in frames for step in steps):
        masks = step.logits.shape[1]
        assert step.logits.shape == (2, masks, SIZE, SIZE)
        assert step.iou.shape == (2, masks)
        assert step.presence.shape == (2, 1)


def test_a_frame_prompted_with_a_mask_has_no_steps_but_a_memory() -> None:
    clips = batch()
    plan = Plan(False, (0,), (), (0, 1, 2))
    frames = simulate(model(), clips, plan, np.random.default_rng(0))
    assert [len(steps) for steps in frames] == [0, 1, 1]
    other_masks = clips._replace(truth=clips.truth.roll(20, -1))
    other = simulate(model(), other_masks, plan, np.random.default_rng(0))
    # Frame 1 attends to the memory of the mask of frame 0.
    assert not torch.equal(frames[1][0].logits, other[1][0].logits)


def test_frames_are_computed_in_the_order_of_the_plan() -> None:
    clips = batch()
    annotator = Annotator(clicks=0)
    two_prompts, one_prompt = (
        simulate(model(), clips, plan, np.random.default_rng(0), annotator)
        for plan in (Plan(True, (0, 2), (0, 2), (0, 2, 1)), Plan(True, (0,), (0,), (0, 1, 2)))
    )
    # With two prompts, frame 1 is computed after frame 2 and attends to its memory.
    assert not torch.equal(two_prompts[1][0].logits, one_prompt[1][0].logits)


ONE_PROMPT = Plan(True, (0,), (0,), (0, 1, 2))


def test_every_part_of_the_model_has_gradients() -> None:
    clips = batch()
    network = model()
    rng = np.random.default_rng(0)
    frames = simulate(network, clips, ONE_PROMPT, rng, Annotator(clicks=1))
    losses = clip_losses(frames, clips.truth, 2)
    require_finite(losses, "test")
    losses.total.backward()
    parts = (
        "image_encoder",
        "memory_attention",
        "memory_encoder",
        "sam_prompt_encoder",
        "sam_mask_decoder",
        "obj_ptr_proj",
        "maskmem_tpos_enc",
    )
    for part in parts:
        grads = [
            p.grad
            for name, p in network.named_parameters()
            if name.startswith(part) and p.grad is not None
        ]
        assert grads and any(bool(g.any()) for g in grads), part
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_gradients_of_the_last_frame_reach_the_images_before_it() -> None:
    clips = batch()
    clips.images.requires_grad_()
    network = model()
    frames = simulate(network, clips, Plan(False, (0,), (), (0, 1, 2)), np.random.default_rng(0))
    frames[2][0].logits.sum().backward()
    gradient = clips.images.grad
    assert gradient is not None and gradient[0].any() and gradient[1].any()


def test_the_steps_of_a_clip_do_not_depend_on_other_clips_of_its_batch() -> None:
    plan = Plan(True, (0,), (0, 1), (0, 1, 2))
    annotator = Annotator(clicks=2)
    both = simulate(model(), batch(3, 5), plan, np.random.default_rng(1), annotator)
    for number, seed in enumerate((3, 5)):
        objects = slice(2 * number, 2 * number + 2)
        alone = simulate(model(), batch(seed), plan, np.random.default_rng(1), annotator)
        for steps, expected_steps in zip(both, alone, strict=True):
            for step, expected in zip(steps, expected_steps, strict=True):
                for a, b in zip(step, expected, strict=True):
                    torch.testing.assert_close(a[objects], b, rtol=1e-3, atol=1e-3)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        network = model()
        clips = batch()
        rng = np.random.default_rng(0)
        annotator = Annotator(clicks=1)
        frames = simulate(network, clips, ONE_PROMPT, rng, annotator, recompute=recompute)
        clip_losses(frames, clips.truth, 2).total.backward()
        gradients.append(
            {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_training_on_one_clip_lowers_its_losses() -> None:
    clips = batch()
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    totals = []
    masks = []
    for step in range(40):
        rng = np.random.default_rng(step)
        frames = simulate(network, clips, ONE_PROMPT, rng, Annotator(clicks=1))
        losses = clip_losses(frames, clips.truth, 2)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        totals.append(losses.total.item())
        masks.append(losses.mask.item() + losses.dice.item())
    assert np.mean(totals[-5:]) < 0.5 * np.mean(totals[:5]), totals
    assert np.mean(masks[-5:]) < 0.7 * np.mean(masks[:5]), masks


def test_clips_of_wrong_shapes_are_refused() -> None:
    clips = batch()
    one = clip()
    with pytest.raises(ValueError, match=r"batch: expected images \[4, B, 3, 64, 64\]"):
        simulate(model(), clips, Plan(True, (0,), (0,), (0, 1, 2, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="clips: expected one or more, all of the same shape"):
        collate([one, one._replace(images=one.images[:2])])
    with pytest.raises(ValueError, match="clip 0: expected truth of shape"):
        collate([one._replace(truth=one.truth[:, :0])])
