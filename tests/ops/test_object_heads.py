"""What a tracked frame keeps: the op against the composition of the model, and in Triton's
interpreter against its definition.
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


class Case(NamedTuple):
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
) -> Case:
    """Of several masks, those of object 1 are unstable, of object 2 all below -delta; about half of
    the objects are absent.
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
    presence, pointer = (
        [*linear(hidden, dim), *linear(hidden, hidden), *linear(1, hidden)],
        [*linear(dim, dim), *linear(dim, dim), *linear(dim, dim)],
    )
    iou, found = random(objects, 4).sigmoid(), random(objects, tokens, dim)
    iou[0, 1:] = iou[0, 1]  # the first of equals
    if objects > 1:
        logit = three_layers(found[:, 0], MlpWeights.unflatten(presence)).flatten().sort().values
        presence[-1] -= (logit[objects // 2] + logit[objects // 2 - 1]) / 2
    weights = ObjectHeadsWeights.unflatten([*presence, *pointer])
    return Case(
        logits, iou, found, weights, random(1, dim), 3 if best else 2, best, 0.05, 0.98, NO_OBJECT
    )


def cast(given: Case, dtype: torch.dtype, logits: torch.dtype) -> Case:
    return given._replace(
        logits=given.logits.to(logits),
        iou=given.iou.to(logits),
        tokens=given.tokens.to(dtype),
        weights=given.weights.to(dtype),
        absent_pointer=given.absent_pointer.to(dtype),
    )


SHAPES: dict[str, dict[str, Any]] = {
    "stable or best": {},
    "the best": {"best": True, "masks": 1},
    "one mask": {"masks": 1, "objects": 1},
    "more pixels than a program takes": {"height": 90, "width": 60, "objects": 2, "tokens": 6},
}

INTERPRETED = """
from sam2_fast.ops.object_heads import _triton_heads, object_heads_reference
from tests.ops.errors import Errors
from tests.ops.test_object_heads import NO_OBJECT, SHAPES, case, cast

for name, shape in SHAPES.items():
    for dtype in (torch.float32, torch.float16):
        errors, signs = Errors(), set()
        for draw in range(6):
            plain = case(**shape, draw=draw)
            given = cast(plain, dtype, torch.float32)
            noncontiguous = given._replace(
                tokens=given.tokens.transpose(0, 1).contiguous().transpose(0, 1)
            )
            exact = object_heads_reference(*cast(given, torch.float64, torch.float32))
            torchs, ours = object_heads_reference(*given), _triton_heads(*given)
            assert [x.dtype for x in ours] == [x.dtype for x in torchs]
            assert [x.shape for x in ours] == [x.shape for x in torchs]
            assert all(map(torch.equal, ours, _triton_heads(*noncontiguous)))
            assert torch.equal(ours[0], exact[0].float()), (name, draw)  # a choice, and copies
            signs |= set((ours[2] > 0).flatten().tolist())
            errors.add(ours[1:], torchs[1:], exact[1:])
        errors.check(name, dtype)
        assert signs == {True, False}, (name, signs)

given = case(masks=4)
with torch.autocast("cpu", torch.float16):
    torchs, ours = object_heads_reference(*given), _triton_heads(*given)
assert [x.dtype for x in ours] == [x.dtype for x in torchs]
"""


@pytest.mark.proves("interpreted", "object_heads:triton")
def test_errs_at_most_twice_as_much_as_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masks_are_chosen_one_by_one(dtype: torch.dtype) -> None:
    """The definition, object by object and in plain Python."""
    given = cast(case(), dtype, dtype)
    mask, pointer, presence = object_heads(*given)
    for b in range(5):
        alone = cast(case(), dtype, dtype)._replace(
            logits=given.logits[b : b + 1], iou=given.iou[b : b + 1], tokens=given.tokens[b : b + 1]
        )
        for whole, part in zip((mask, pointer, presence), object_heads(*alone), strict=True):
            assert torch.allclose(whole[b : b + 1], part, atol=1e-5)
        single = given.logits[b, 0].flatten().tolist()
        inner, outer = sum(x > 0.05 for x in single), sum(x > -0.05 for x in single)
        stable = outer == 0 or inner / outer >= 0.98
        wanted = 0 if stable else 1 + max(range(3), key=lambda m: given.iou[b, 1 + m].item())
        if presence[b] > 0:
            assert torch.equal(mask[b, 0], given.logits[b, wanted])
        else:
            assert (mask[b] == NO_OBJECT).all() and torch.equal(pointer[b], given.absent_pointer[0])
    assert 0 < (presence > 0).sum() < 5


def test_arguments_that_do_not_fit_are_named() -> None:
    given = case()
    wrong = [
        (given._replace(logits=given.logits[0]), "logits, iou, tokens: expected"),
        (given._replace(first_mask_token=3), "first_mask_token: expected"),
        (given._replace(best=True), "logits: expected the best mask alone, got 4"),
        (
            given._replace(tokens=given.tokens[..., 1:]),
            "tokens: expected the 128 channels of the weights, got 127",
        ),
        (given._replace(absent_pointer=given.absent_pointer[0]), "absent_pointer"),
    ]
    for arguments, words in wrong:
        with pytest.raises(ValueError, match=words):
            object_heads(*arguments)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = case().weights
    with pytest.raises(
        ValueError, match="weights: expected 12 tensors for ObjectHeadsWeights, got 11"
    ):
        ObjectHeadsWeights.unflatten(weights.flatten()[:-1])
    with pytest.raises(ValueError, match=r"weights.presence.linear2.weight: expected shape"):
        weights.with_tensors({"presence.linear2.weight": weights.presence.linear2.weight[1:]})


def test_says_why_it_refuses() -> None:
    with pytest.raises(BackendError, match=r"object_heads: triton refuses: .*Would run: torch"):
        object_heads(*case(), backend="triton")


def test_gradients_flow_through_the_definition() -> None:
    given = case(masks=1)
    weights = [w.requires_grad_() for w in given.weights.flatten()]
    mask, pointer, presence = object_heads(*given)
    (mask.sum() + pointer.sum() + presence.sum()).backward()
    assert all(w.grad is not None for w in weights)


@pytest.mark.proves("compiled", "object_heads:triton")
@pytest.mark.parametrize("masks", [1, 4])
@pytest.mark.parametrize("capability", [80, 89, 90, 120])
def test_compiles_without_spills(capability: int, masks: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import object_heads as kernels

    floats = dict.fromkeys(
        ("logits", "iou", "pointer", "mask", "delta", "threshold", "absent_logit"), "fp32"
    )
    pointers = {"logits", "iou", "pointer", "mask"}
    for kernel, constants, warps in (
        (
            kernels.object_state_kernel,
            {
                "BEST": masks == 1,
                "DIM": 256,
                "PRESENCE": 256,
                "POINTER": 256,
                "VALUES": 4,
                "BLOCK": 32,
            },
            8,
        ),
        (
            kernels.select_mask_kernel,
            {"CHOOSE": masks > 1, "VALUES": 4, "BLOCKS": 16, "DIM": 256},
            4,
        ),
    ):
        names = [n for n in kernel.arg_names if n not in constants and n != "PIXELS"]
        numbers = {
            "count",
            "size",
            "num_masks",
            "iou_count",
            "first_mask",
            "first_value",
            "blocks",
            "presence_hidden",
            "pointer_hidden",
        }
        kinds = {n: "i32" if n in numbers else "*bf16" for n in names}
        kinds |= {n: f"*{t}" if n in pointers else t for n, t in floats.items() if n in names} | {
            "counts": "*i32"
        }
        found = resources(
            kernel,
            kinds,
            constants | {"PIXELS": kernels.PIXELS},
            capability,
            warps,
            3,
            ("size", "presence_hidden", "pointer_hidden"),
        )
        assert found[1] == 0, found


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
        given = cast(case(**shape, draw=draw), dtype, torch.float32)
        given = given._replace(
            **{name: x.cuda() for name, x in given._asdict().items() if isinstance(x, Tensor)},
            weights=given.weights.to("cuda"),
        )
        exact = object_heads_reference(*cast(given, torch.float64, torch.float32))
        torchs, ours = object_heads_reference(*given), object_heads(*given, backend="triton")
        assert all(map(torch.equal, ours, object_heads(*given, backend="triton"))), "run to run"
        # a logit near zero may round to the other side
        present = ((ours[2] > 0) == (exact[2] > 0))[:, 0]
        assert torch.equal(ours[0][present], exact[0][present].float())
        results = ours, torchs, exact
        errors.add(*((pointer[present], presence[present]) for _, pointer, presence in results))
    errors.check()
