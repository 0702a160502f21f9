"""Mask, object pointer and presence of a tracked frame: the op against the definition in plain
Python, and the Triton kernels against the definition in torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.native import no_triton
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.mask_decoder.reference import three_layers
from sam2_fast.ops.mask_decoder.weights import MlpWeights
from sam2_fast.ops.object_heads import ObjectHeadsWeights, object_heads, object_heads_reference
from tests.ops.errors import Errors
from tests.ops.triton_tools import interpret, resources

NO_OBJECT = -1024.0


class Inputs(NamedTuple):
    """Arguments of the op."""

    logits: Tensor
    iou: Tensor
    tokens: Tensor
    weights: ObjectHeadsWeights
    absent_pointer: Tensor
    first_mask_token: int
    best: bool
    delta: float
    threshold: float
    absent_logit: float


def case(
    objects: int = 5,
    masks: int = 4,
    best: bool = False,
    dim: int = 128,
    hidden: int = 40,
    height: int = 12,
    width: int = 9,
    tokens: int = 8,
    draw: int = 0,
) -> Inputs:
    """Arguments in which about half of the objects are absent.

    The first mask of object 1 is unstable; all logits of that of object 2 are below -delta.
    """
    generator = torch.Generator().manual_seed(100 * masks + draw)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def linear(out: int, into: int) -> list[Tensor]:
        return [random(out, into) * into**-0.5, random(out) * 0.3]

    logits = 5 * random(objects, masks, height, width)
    if objects > 2:
        logits[1] *= 0.02
        logits[2, 0] = -3.0
    presence = [*linear(hidden, dim), *linear(hidden, hidden), *linear(1, hidden)]
    pointer = [*linear(dim, dim), *linear(dim, dim), *linear(dim, dim)]
    iou = random(objects, 4).sigmoid()
    iou[0, 1:] = iou[0, 1]  # of equal values, the first is chosen
    output_tokens = random(objects, tokens, dim)
    if objects > 1:  # zero is between two presence logits in the middle
        presence_logits = three_layers(output_tokens[:, 0], MlpWeights.unflatten(presence))
        ascending = presence_logits.flatten().sort().values
        presence[-1] -= (ascending[objects // 2] + ascending[objects // 2 - 1]) / 2
    return Inputs(
        logits=logits,
        iou=iou,
        tokens=output_tokens,
        weights=ObjectHeadsWeights.unflatten([*presence, *pointer]),
        absent_pointer=random(1, dim),
        first_mask_token=3 if best else 2,
        best=best,
        delta=0.05,
        threshold=0.98,
        absent_logit=NO_OBJECT,
    )


def cast(inputs: Inputs, dtype: torch.dtype, logits: torch.dtype) -> Inputs:
    """Logits and predicted IoUs in the dtype `logits`, the other tensors in `dtype`."""
    return inputs._replace(
        logits=inputs.logits.to(logits),
        iou=inputs.iou.to(logits),
        tokens=inputs.tokens.to(dtype),
        weights=inputs.weights.to(dtype),
        absent_pointer=inputs.absent_pointer.to(dtype),
    )


SHAPES: dict[str, dict[str, Any]] = {
    "stable or best": {},
    "the best": {"best": True, "masks": 1},
    "one mask": {"masks": 1, "objects": 1},
    "more pixels than in a block": {"height": 90, "width": 60, "objects": 2, "tokens": 6},
}

INTERPRETED = """
from sam2_fast.ops.object_heads import _triton_heads, object_heads_reference
from tests.ops.errors import Errors
from tests.ops.test_object_heads import NO_OBJECT, SHAPES, case, cast

for name, shape in SHAPES.items():
    for dtype in (torch.float32, torch.float16):
        errors, signs = Errors(), set()
        for draw in range(6):
            inputs = cast(case(**shape, draw=draw), dtype, torch.float32)
            noncontiguous = inputs._replace(
                tokens=inputs.tokens.transpose(0, 1).contiguous().transpose(0, 1)
            )
            exact = object_heads_reference(*cast(inputs, torch.float64, torch.float32))
            reference = object_heads_reference(*inputs)
            actual = _triton_heads(*inputs)
            assert [x.dtype for x in actual] == [x.dtype for x in reference]
            assert [x.shape for x in actual] == [x.shape for x in reference]
            if draw == 0:
                assert all(map(torch.equal, actual, _triton_heads(*noncontiguous)))
            # The mask is copied, so that it has no rounding errors.
            assert torch.equal(actual[0], exact[0].float()), (name, draw)
            signs |= set((actual[2] > 0).flatten().tolist())
            errors.add(actual[1:], reference[1:], exact[1:])
        errors.check(name, dtype)
        assert signs == {True, False}, (name, signs)

inputs = case(masks=4)
with torch.autocast("cpu", torch.float16):
    reference = object_heads_reference(*inputs)
    actual = _triton_heads(*inputs)
assert [x.dtype for x in actual] == [x.dtype for x in reference]
"""


@pytest.mark.proves("interpreted", "object_heads:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_each_object_has_the_mask_that_the_definition_in_python_chooses(
    dtype: torch.dtype,
) -> None:
    inputs = cast(case(), dtype, dtype)
    mask, pointer, presence = object_heads(*inputs)
    for b in range(5):
        one_object = inputs._replace(
            logits=inputs.logits[b : b + 1],
            iou=inputs.iou[b : b + 1],
            tokens=inputs.tokens[b : b + 1],
        )
        outputs = (mask, pointer, presence)
        for output, expected in zip(outputs, object_heads(*one_object), strict=True):
            assert torch.allclose(output[b : b + 1], expected, atol=1e-5)
        first_mask = inputs.logits[b, 0].flatten().tolist()
        inner = sum(x > 0.05 for x in first_mask)
        outer = sum(x > -0.05 for x in first_mask)
        stable = outer == 0 or inner / outer >= 0.98
        choice = 0 if stable else 1 + max(range(3), key=lambda m: inputs.iou[b, 1 + m].item())
        if presence[b] > 0:
            assert torch.equal(mask[b, 0], inputs.logits[b, choice])
        else:
            assert (mask[b] == NO_OBJECT).all() and torch.equal(
                pointer[b], inputs.absent_pointer[0]
            )
    assert 0 < (presence > 0).sum() < 5


def test_arguments_that_do_not_fit_are_named() -> None:
    inputs = case()
    invalid = [
        (inputs._replace(logits=inputs.logits[0]), "logits, iou, tokens: expected"),
        (inputs._replace(first_mask_token=3), "first_mask_token: expected"),
        (inputs._replace(best=True), "logits: expected the best mask only, got 4"),
        (
            inputs._replace(tokens=inputs.tokens[..., 1:]),
            "tokens: expected the 128 channels of the weights, got 127",
        ),
        (inputs._replace(absent_pointer=inputs.absent_pointer[0]), "absent_pointer"),
    ]
    for arguments, message in invalid:
        with pytest.raises(ValueError, match=message):
            object_heads(*arguments)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = case().weights
    with pytest.raises(
        ValueError, match="weights: expected 12 tensors for ObjectHeadsWeights, got 11"
    ):
        ObjectHeadsWeights.unflatten(weights.flatten()[:-1])
    with pytest.raises(ValueError, match=r"weights.presence.linear2.weight: expected shape"):
        weights.with_tensors({"presence.linear2.weight": weights.presence.linear2.weight[1:]})


def test_a_refusal_without_a_gpu_names_the_next_backend() -> None:
    with pytest.raises(BackendError, match=r"object_heads: triton refuses: .*Would run: torch"):
        object_heads(*case(), backend="triton")


def test_gradients_flow_through_the_definition() -> None:
    inputs = case(masks=1)
    weights = [w.requires_grad_() for w in inputs.weights.flatten()]
    mask, pointer, presence = object_heads(*inputs)
    (mask.sum() + pointer.sum() + presence.sum()).backward()
    assert all(w.grad is not None for w in weights)


@pytest.mark.proves("compiled", "object_heads:triton")
@pytest.mark.parametrize("masks", [1, 4])
@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_compiles_without_spills(capability: int, masks: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import object_heads as kernels

    floats = dict.fromkeys(("logits", "iou", "pointer", "mask"), "*fp32")
    floats |= dict.fromkeys(("delta", "threshold", "absent_logit"), "fp32")
    integers = dict.fromkeys(("count", "size", "num_masks", "iou_count", "first_mask"), "i32")
    integers |= dict.fromkeys(("first_value", "blocks"), "i32")
    integers |= dict.fromkeys(("presence_hidden", "pointer_hidden"), "i32")
    sizes = {"DIM": 256, "PRESENCE": 256, "POINTER": 256, "VALUES": 4, "BLOCK": 32}
    for kernel, constants, warps in (
        (kernels.object_state_kernel, {"BEST": masks == 1, **sizes}, 8),
        (
            kernels.select_mask_kernel,
            {"CHOOSE": masks > 1, "VALUES": 4, "BLOCKS": 16, "DIM": 256},
            4,
        ),
    ):
        names = [n for n in kernel.arg_names if n not in constants and n != "PIXELS"]
        types = dict.fromkeys(names, "*bf16") | {"counts": "*i32"}
        types |= {n: t for n, t in (floats | integers).items() if n in names}
        used = resources(
            kernel,
            types,
            constants | {"PIXELS": kernels.PIXELS},
            capability,
            warps,
            3,
            ("size", "presence_hidden", "pointer_hidden"),
        )
        assert used.spilled_bytes == 0, used


@pytest.mark.proves("gpu test", "object_heads:triton")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [*SHAPES.values(), {"height": 256, "width": 256, "dim": 256, "hidden": 256}], ids=str
)
def test_errs_at_most_twice_as_much_as_torch_on_a_gpu(
    shape: dict[str, Any], dtype: torch.dtype
) -> None:
    if reason := no_triton():
        pytest.skip(reason)
    errors = Errors()
    for draw in range(8):
        inputs = cast(case(**shape, draw=draw), dtype, torch.float32)
        inputs = inputs._replace(
            **{name: x.cuda() for name, x in inputs._asdict().items() if isinstance(x, Tensor)},
            weights=inputs.weights.to("cuda"),
        )
        exact = object_heads_reference(*cast(inputs, torch.float64, torch.float32))
        reference = object_heads_reference(*inputs)
        actual = object_heads(*inputs, backend="triton")
        assert all(map(torch.equal, actual, object_heads(*inputs, backend="triton"))), "run to run"
        # The sign of a presence logit near zero may differ; such objects are left out.
        comparable = ((actual[2] > 0) == (exact[2] > 0))[:, 0]
        assert torch.equal(actual[0][comparable], exact[0][comparable].float())
        errors.add(
            *(
                (pointer[comparable], presence[comparable])
                for _, pointer, presence in (actual, reference, exact)
            )
        )
    errors.check()
