"""The fused mask decoder: accepted and refused arguments, and the backend that runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_decoder import MaskDecoderWeights, cpu_weights, mask_decoder
from sam2_fast.proving.errors import cast
from tests.ops.cases import with_changed_weight
from tests.ops.test_mask_decoder import Inputs, case


def test_strides_do_not_change_results() -> None:
    inputs = case()
    image = inputs.image.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    weights = inputs.weights.mapped(lambda _, w: w.transpose(0, -1).contiguous().transpose(0, -1))
    strided = inputs._replace(image=image, weights=weights)
    assert torch.equal(mask_decoder(*strided)[0], mask_decoder(*inputs)[0])


def test_no_objects_give_empty_outputs() -> None:
    logits, iou, tokens = mask_decoder(*case(objects=0))
    assert logits.shape == (0, 3, 20, 28) and iou.shape == (0, 4) and tokens.shape == (0, 8, 32)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case()
    assert torch.equal(mask_decoder(*inputs)[0], mask_decoder(*inputs, backend="cpu")[0])
    assert not torch.equal(mask_decoder(*inputs)[0], mask_decoder(*inputs, backend="torch")[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (
            lambda c: with_changed_weight(
                c, "layers[0].self_attention.q.weight", lambda w: w.half()
            ),
            "float16",
        ),
        (lambda c: c._replace(image=c.image.requires_grad_()), "gradients"),
        (lambda c: c._replace(image=c.image.to("meta")), "meta"),
        (lambda c: c._replace(present=torch.zeros(3, 8, dtype=torch.bool)), "marked absent"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[[Inputs], Inputs], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"mask_decoder: cpu refuses: .*{reason}.*Would run: torch"
    ):
        mask_decoder(*change(case()), backend="cpu")


def with_two_iou_values(inputs: Inputs) -> Inputs:
    """The head of predicted IoUs with two outputs."""
    last_layer = {
        f"iou.linear3.{part}": dict(inputs.weights.named())[f"iou.linear3.{part}"][:2]
        for part in ("weight", "bias")
    }
    return inputs._replace(weights=inputs.weights.with_tensors(last_layer))


INVALID_ARGUMENTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (lambda c: c._replace(image=c.image[0]), "image, prompts: expected"),
    (
        lambda c: c._replace(image=c.image.expand(2, -1, -1, -1)),
        "image, mid: expected 1 or one for each of 3",
    ),
    (lambda c: c._replace(mid=c.mid[:, 1:]), "mid: expected shape"),
    (lambda c: c._replace(high=c.high[..., 1:]), "high: expected shape"),
    (lambda c: c._replace(position=c.position[1:]), "position: expected shape"),
    (lambda c: c._replace(prompts=c.prompts[..., 1:]), "prompts: expected shape"),
    (lambda c: c._replace(present=torch.ones(3, 7, dtype=torch.bool)), "present: expected shape"),
    (
        lambda c: case(dim=64)._replace(weights=c.weights),
        "image: expected the 32 channels of the weights, got 64",
    ),
    (lambda c: c._replace(iou_token=2), "iou_token: expected an index below 2"),
    (with_two_iou_values, "iou_token: .* predicts 2 values"),
    (lambda c: c._replace(num_heads=3), "num_heads: expected a divisor of 16"),
    (lambda c: c._replace(first_mask_token=6), "first_mask_token: expected 3 mask tokens among 8"),
]


INVALID_WEIGHTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (
        lambda c: c._replace(weights=MaskDecoderWeights.unflatten(c.weights.flatten()[:-1])),
        "weights: expected 94 tensors and 6 for each .*, got 111",
    ),
    (
        lambda c: with_changed_weight(c, "layers[1].self_attention.q.weight", lambda w: w[1:]),
        r"weights.layers\[1\].self_attention.q.weight: expected shape",
    ),
    (
        lambda c: with_changed_weight(c, "up1.bias", lambda w: w[1:]),
        "weights.up1.bias: expected shape",
    ),
    (
        lambda c: with_changed_weight(c, "iou.linear3.weight", lambda w: w[:, 1:]),
        "weights.iou.linear3.weight: expected shape",
    ),
    (
        lambda c: with_changed_weight(c, "masks[1].linear2.bias", lambda w: w[1:]),
        r"weights.masks\[1\].linear2.bias: expected shape",
    ),
]
"""The constructor of the weights raises, so that no op and no binding receives them."""


@pytest.mark.parametrize(("change", "message"), [*INVALID_ARGUMENTS, *INVALID_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(
    change: Callable[[Inputs], Inputs], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_decoder(*change(case()))


@pytest.mark.parametrize(
    "change",
    [change for change, _ in INVALID_ARGUMENTS],
    ids=[message for _, message in INVALID_ARGUMENTS],
)
def test_the_binding_checks_its_arguments(change: Callable[[Inputs], Inputs]) -> None:
    module = native()
    assert module is not None
    inputs = change(case())
    with pytest.raises(ValueError, match="expected"):
        module.mask_decoder(
            inputs.image.contiguous(),
            inputs.mid,
            inputs.high,
            inputs.position,
            inputs.prompts,
            inputs.present,
            module.MaskDecoderWeights(cpu_weights(inputs.weights, torch.float32)),
            inputs.num_heads,
            inputs.first_mask_token,
            inputs.iou_token,
            inputs.best,
            torch.zeros(3, 3, 20, 28),
            torch.zeros(3, 8, 32),
            torch.zeros(3, 4),
            2,
            "portable",
        )


def test_opcheck_passes() -> None:
    for inputs in (case(objects=2), case(absent=True, best=True)):
        torch.library.opcheck(
            torch.ops.sam2_fast.mask_decoder.default,
            tuple(inputs._replace(weights=inputs.weights.flatten())),
        )
