"""The fused memory encoder: accepted and refused arguments, and the backend that runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_encoder import MemoryEncoderWeights, memory_encoder
from sam2_fast.proving.errors import cast
from tests.ops.cases import with_changed_weight
from tests.ops.test_memory_encoder import Inputs, case, kernel_weights


def test_strides_do_not_change_results() -> None:
    inputs = case()

    def with_strides(_: Leaf, w: Tensor) -> Tensor:
        if w.ndim == 4:
            return w.contiguous(memory_format=torch.channels_last)
        return w.repeat_interleave(2, 0)[::2]

    strided = inputs._replace(
        low=inputs.low.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        logits=inputs.logits.transpose(1, 2).contiguous().transpose(1, 2),
        weights=inputs.weights.mapped(with_strides),
    )
    assert torch.equal(memory_encoder(*strided), memory_encoder(*inputs))


def test_empty_inputs_give_empty_outputs() -> None:
    assert memory_encoder(*case(objects=0)).shape == (0, 25, 6)
    inputs = case()
    assert memory_encoder(*inputs._replace(low=inputs.low[:, :0])).shape == (3, 0, 6)


def test_auto_runs_the_native_kernel_on_a_cpu() -> None:
    inputs = case()
    assert torch.equal(memory_encoder(*inputs), memory_encoder(*inputs, backend="cpu"))
    assert not torch.equal(memory_encoder(*inputs), memory_encoder(*inputs, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (
            lambda c: with_changed_weight(c, "last_convolutions[1].weight", lambda w: w.half()),
            "float16",
        ),
        (lambda c: c._replace(low=c.low.requires_grad_()), "gradients"),
        (lambda c: c._replace(low=c.low.to("meta")), "meta"),
        (lambda _: case(channels=(4, 6, 9, 16)), "even"),
        (lambda _: case(hidden=41), "even"),
        (lambda c: c._replace(logits=c.logits[:, :, :1].expand(3, 20, 16385)), "up to 16384"),
    ],
)
def test_a_refusal_names_its_reason(change: Callable[[Inputs], Inputs], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"memory_encoder: cpu refuses: .*{reason}.*Would run: torch"
    ):
        memory_encoder(*change(case()), backend="cpu")


def without_a_row(inputs: Inputs, name: str) -> Inputs:
    """The tensor `name` of the weights lacks its first row."""
    return with_changed_weight(inputs, name, lambda w: w[1:])


INVALID_ARGUMENTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (lambda c: c._replace(low=c.low[0]), "low, logits: expected"),
    (
        lambda c: c._replace(low=c.low.expand(2, -1, -1, -1).contiguous()),
        "low: expected 1 frame or one for each of 3",
    ),
    (lambda c: c._replace(logits=c.logits[:, :0]), "logits: expected a pixel or more"),
    (
        lambda c: c._replace(low=c.low[..., 1:].contiguous()),
        "low: expected the 16 channels of the weights, got 15",
    ),
]


INVALID_WEIGHTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (
        lambda c: c._replace(weights=MemoryEncoderWeights.unflatten(c.weights.flatten()[:-1])),
        "weights: expected 22 tensors and 9 for each repeated or optional part .*, got 39",
    ),
    (
        lambda c: c._replace(
            weights=MemoryEncoderWeights.unflatten(
                [*c.weights.flatten()[:20], *c.weights.flatten()[-2:]]
            )
        ),
        "weights: expected 22 tensors and 9 for each repeated or optional part .*, got 22",
    ),
    (
        lambda c: without_a_row(c, "first_convolutions[1].bias"),
        r"weights.first_convolutions\[1\].bias: expected shape \(6,\)",
    ),
    (
        lambda c: without_a_row(c, "last_convolutions[0].weight"),
        r"weights.last_convolutions\[0\].bias: expected shape",
    ),
    (
        lambda c: without_a_row(c, "low_proj.weight"),
        r"weights.low_proj.weight: expected shape \(16, 16, 1, 1\)",
    ),
    (
        lambda c: without_a_row(c, "blocks[1].depthwise.weight"),
        r"weights.blocks\[1\].depthwise.weight: expected shape \(16, 1, 7, 7\)",
    ),
    (lambda c: without_a_row(c, "blocks[1].gamma"), r"weights.blocks\[1\].gamma: expected shape"),
    (lambda c: without_a_row(c, "out_proj.bias"), r"weights.out_proj.bias: expected shape \(6,\)"),
]
"""The constructor of the weights raises, so that no op and no binding receives them."""


@pytest.mark.parametrize(("change", "message"), [*INVALID_ARGUMENTS, *INVALID_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(
    change: Callable[[Inputs], Inputs], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        memory_encoder(*change(case()))


def weights_of_unchanged_dtype(inputs: Inputs) -> MemoryEncoderWeights:
    """The weights in the layout that the kernel expects, and in the dtypes that they have."""
    return inputs.weights.converted(
        lambda _, w: w.permute(0, 2, 3, 1).flatten(1).contiguous() if w.ndim == 4 else w
    )


@pytest.mark.parametrize(
    "change",
    [
        *(change for change, _ in INVALID_ARGUMENTS),
        lambda c: c._replace(low=c.low.double()),
        lambda c: c._replace(low=c.low[..., 1:].contiguous()),
        lambda c: c._replace(low=c.low.transpose(1, 2)[:, :4]),
        lambda c: with_changed_weight(c, "last_convolutions[1].weight", lambda w: w.half()),
        lambda c: case(channels=(4, 5, 10, 16)),
    ],
)
def test_the_binding_checks_its_arguments(change: Callable[[Inputs], Inputs]) -> None:
    module = native()
    assert module is not None
    inputs = change(case())
    with pytest.raises(ValueError, match="expected"):
        module.memory_encoder(
            inputs.low,
            inputs.logits,
            module.MemoryEncoderWeights(weights_of_unchanged_dtype(inputs)),
            torch.zeros(3, 25, 6),
            False,
            1e-6,
            2,
            "portable",
        )


@pytest.mark.parametrize(
    "out",
    [torch.zeros(3, 24, 6), torch.zeros(3, 25, 6).double(), torch.zeros(3, 25, 12)[..., ::2]],
    ids=["shape", "dtype", "strides"],
)
def test_the_binding_checks_the_output(out: Tensor) -> None:
    module = native()
    assert module is not None
    inputs = case()
    weights = module.MemoryEncoderWeights(kernel_weights(inputs))
    with pytest.raises(ValueError, match="out: expected"):
        module.memory_encoder(inputs.low, inputs.logits, weights, out, False, 1e-6, 2, "portable")


def test_opcheck_passes() -> None:
    for inputs in (case(), case(images=3, binarize=True)):
        torch.library.opcheck(
            torch.ops.sam2_fast.memory_encoder.default,
            tuple(inputs._replace(weights=inputs.weights.flatten())),
        )
