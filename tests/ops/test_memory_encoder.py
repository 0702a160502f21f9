"""The fused memory encoder: errors of every instruction set against the definition in float64, and
the behaviour of the public function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.config import Sam2Config
from sam2_fast.model.memory_encoder import MemoryEncoder
from sam2_fast.ops.core.native import native
from sam2_fast.ops.memory_encoder import (
    MemoryEncoderWeights,
    _native_encoder,
    cpu_weights,
    memory_encoder,
    memory_encoder_reference,
)
from sam2_fast.proving.errors import cast
from tests.ops import cases
from tests.ops.cases import with_matrix_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Inputs(NamedTuple):
    """Arguments of the op."""

    low: Tensor
    logits: Tensor
    weights: MemoryEncoderWeights
    binarize: bool
    eps: float


def case(
    height: int = 5,
    width: int = 5,
    objects: int = 3,
    images: int = 1,
    logits: tuple[int, int] = (20, 20),
    dim: int = 16,
    hidden: int = 40,
    memory_dim: int = 6,
    channels: tuple[int, ...] = (4, 6, 10, 16),
    blocks: int = 2,
    binarize: bool = False,
    scale: float = 4.0,
    draw: int = 0,
) -> Inputs:
    """Arguments of the op. The standard deviation of the logits is `scale`."""
    generator = torch.Generator().manual_seed(height * 100 + width + 10000 * draw)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def layer(*shape: int) -> list[Tensor]:
        return [random(*shape) * math.prod(shape[1:]) ** -0.5, random(shape[0]) * 0.3]

    def norm(count: int) -> list[Tensor]:
        return [1 + 0.2 * random(count), 0.2 * random(count)]

    weights: list[Tensor] = []
    for inner, outer in zip((1, *channels), channels, strict=False):
        weights += [*layer(outer, inner, 3, 3), *norm(outer)]
    weights += [*layer(dim, channels[-1], 1, 1), *layer(dim, dim, 1, 1)]
    for _ in range(blocks):
        weights += [
            *layer(dim, 1, 7, 7),
            *norm(dim),
            *layer(hidden, dim),
            *layer(dim, hidden),
            random(dim),
        ]
    weights += layer(memory_dim, dim, 1, 1)
    low = random(images, height, width, dim)
    named_weights = MemoryEncoderWeights.unflatten(weights)
    return Inputs(low, random(objects, *logits) * scale, named_weights, binarize, 1e-6)


def kernel_weights(inputs: Inputs) -> MemoryEncoderWeights:
    """The weights in the layout and dtypes that the native kernel expects."""
    return cpu_weights(inputs.weights, inputs.weights.out_proj.weight.dtype)


def native_output(inputs: Inputs, isa: str, threads: int = 2) -> Tensor:
    """The output of the native kernel, written to memory that is full of NaN."""
    module = native()
    assert module is not None
    shape = (
        inputs.logits.shape[0],
        inputs.low.shape[1] * inputs.low.shape[2],
        inputs.weights.out_proj.bias.shape[0],
    )
    out = torch.full(shape, torch.nan, dtype=inputs.weights.out_proj.weight.dtype)
    module.memory_encoder(
        inputs.low,
        inputs.logits.float(),
        module.MemoryEncoderWeights(kernel_weights(inputs)),
        out,
        inputs.binarize,
        inputs.eps,
        threads,
        isa,
    )
    return out


def error(output: Tensor, exact: Tensor) -> float:
    """Root mean square error."""
    return (output.double() - exact).square().mean().sqrt().item()


def assert_errs_at_most_twice_as_much_as_torch(output: Tensor, inputs: Inputs) -> None:
    """Compares with torch in the same dtype."""
    exact = memory_encoder_reference(*cast(inputs, torch.float64))
    torch_error = error(memory_encoder_reference(*inputs), exact)
    rounding_error = error(exact.to(output.dtype), exact)
    kernel_error = error(output, exact)
    context = kernel_error, torch_error, rounding_error
    assert kernel_error <= 2 * max(torch_error, rounding_error), context


SHAPES: dict[str, dict[str, Any]] = {
    "a shared frame": {},
    "one frame per object": {"images": 3},
    "three rows of three tokens": {"height": 3, "width": 3, "logits": (12, 12)},
    # Of few values, errors are chance: they depend on the number of threads of torch.
    "one token": {"height": 1, "width": 1, "logits": (4, 4), "blocks": 1, "objects": 24},
    "tokens of whole vectors": {"height": 16, "width": 16, "logits": (64, 64), "objects": 1},
    "one token more than a vector": {"height": 4, "width": 17, "logits": (16, 68), "objects": 2},
    "rows longer than a tile": {"height": 2, "width": 130, "logits": (8, 100), "objects": 1},
    "logits not square": {"height": 3, "width": 4, "logits": (17, 29)},
    "logits of another shape": {"height": 4, "width": 3, "logits": (29, 17), "images": 3},
    "logits of one pixel": {"height": 3, "width": 3, "logits": (1, 1)},
    "logits at full size": {"height": 3, "width": 5, "logits": (48, 80)},
    "logits at full height": {"height": 3, "width": 5, "logits": (48, 33)},
    "logits beyond full size": {"height": 3, "width": 4, "logits": (61, 130)},
    "channels as in the model": {
        "height": 4,
        "width": 4,
        "logits": (16, 16),
        "channels": (4, 16, 64, 256),
        "dim": 64,
        "hidden": 256,
        "memory_dim": 16,
    },
    "many blocks": {"height": 9, "width": 8, "blocks": 5, "memory_dim": 33},
}


@pytest.mark.proves("reference", "memory_encoder:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("binarize", [False, True], ids=["sigmoid", "binarized"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, binarize: bool, shape: dict[str, Any]
) -> None:
    inputs = cast(case(**shape, binarize=binarize), dtype)
    assert_errs_at_most_twice_as_much_as_torch(native_output(inputs, isa), inputs)


@pytest.mark.parametrize("binarize", [False, True], ids=["sigmoid", "binarized"])
@pytest.mark.parametrize("full", [False, True], ids=["resized", "full size"])
def test_large_and_zero_logits_err_at_most_twice_as_much_as_torch(
    isa: str, binarize: bool, full: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = case(binarize=binarize)
    # The logits are resized by a factor of four, so that its weights and the signs are exact.
    size = (3, 80, 80) if full else (3, 20, 20)
    logits = torch.tensor([-1000.0, 0.0, 1000.0])[torch.randint(3, size, generator=generator)]
    inputs = inputs._replace(logits=logits)
    assert_errs_at_most_twice_as_much_as_torch(native_output(inputs, isa), inputs)


def test_infinite_logits_at_full_size_equal_very_large_ones(isa: str) -> None:
    inputs = case(height=3, width=3, logits=(48, 48))
    signs = inputs.logits.sign()
    assert torch.equal(
        native_output(inputs._replace(logits=signs * torch.inf), isa),
        native_output(inputs._replace(logits=signs * 1000), isa),
    )


@pytest.mark.parametrize("images", [1, 3], ids=["a shared frame", "one frame per object"])
def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(
    isa: str, images: int
) -> None:
    inputs = case(height=21, width=9, images=images)
    expected = native_output(inputs, isa, threads=1)
    for threads in (1, 2, 3, 7, 40):
        assert torch.equal(native_output(inputs, isa, threads), expected)
    for i in range(3):
        one_object = inputs._replace(
            low=inputs.low[i : i + 1] if images > 1 else inputs.low, logits=inputs.logits[i : i + 1]
        )
        assert torch.equal(native_output(one_object, isa), expected[i : i + 1])
    one_frame_per_object = inputs._replace(low=inputs.low.expand(3, -1, -1, -1).contiguous())
    assert torch.equal(native_output(one_frame_per_object, isa), expected)


def test_nan_affects_only_its_object(isa: str) -> None:
    for inputs in (case(height=9, width=7, images=3), case(height=9, width=7)):
        clean = native_output(inputs, isa)
        inputs.logits[1, 10, 10] = torch.nan
        output = native_output(inputs, isa)
        assert output[1].isnan().any() and torch.equal(output[[0, 2]], clean[[0, 2]])
        if inputs.low.shape[0] > 1:
            inputs.low[2, 4, 4, 3] = torch.nan
            output = native_output(inputs, isa)
            assert output[2].isnan().any() and torch.equal(output[0], clean[0])


def test_nan_is_where_the_definition_has_it(isa: str) -> None:
    inputs = case(height=16, width=16, logits=(64, 64), objects=1, blocks=1)
    inputs.low[0, 3, 12, 3] = torch.nan
    inputs.logits[0, 50, 8] = torch.nan
    assert torch.equal(
        native_output(inputs, isa).isnan(), memory_encoder_reference(*inputs).isnan()
    )


def test_weights_may_be_bfloat16_for_float32_features(isa: str) -> None:
    """As under autocast: features and norms are float32, matrices are multiplied in bfloat16."""
    inputs = case()
    half = inputs._replace(weights=with_matrix_dtype(inputs.weights))
    exact = memory_encoder_reference(*cast(half, torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        torch_error = error(memory_encoder_reference(*inputs), exact)
    output = native_output(half, isa)
    assert output.dtype == torch.bfloat16 and error(output, exact) <= 2 * torch_error


def test_autocast_of_the_caller_sets_the_compute_dtype() -> None:
    inputs = case()
    with torch.autocast("cpu", torch.bfloat16):
        output = memory_encoder(*inputs)
    expected = memory_encoder(inputs.low, inputs.logits, with_matrix_dtype(inputs.weights), False)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)


def encode(model: MemoryEncoder, low: Tensor, logits: Tensor, binarize: bool) -> Tensor:
    weights = model.op_weights(low, logits)
    assert weights is not None
    return model.run_op(low, logits, weights, binarize)


def test_gradients_flow_through_the_modules_and_the_kernel_equals_them() -> None:
    model = MemoryEncoder.from_config(
        Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    )
    low, logits = torch.randn(1, 256, 4, 4), torch.randn(2, 1, 64, 64) * 4
    masks = logits.sigmoid() * 20 - 10
    reference = model(low, masks, skip_mask_sigmoid=True)["vision_features"]
    reference.sum().backward()
    assert reference.shape == (2, 64, 4, 4)
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        output = encode(model, low, logits, False).transpose(1, 2).unflatten(2, (4, 4))
        masks = logits.double().sigmoid() * 20 - 10
        exact = model.double()(low.double(), masks, skip_mask_sigmoid=True)["vision_features"]
    assert not torch.equal(output, reference)
    assert error(output, exact) <= 2 * error(reference.detach(), exact)


def test_cached_bfloat16_matrices_are_computed_again_after_a_parameter_changes() -> None:
    model = MemoryEncoder.from_config(
        Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    )
    low, logits = torch.randn(1, 256, 4, 4), torch.randn(2, 1, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = encode(model, low, logits, True)
        assert torch.equal(encode(model, low, logits, True), first)
        model.out_proj.weight.mul_(2)
        model.out_proj.bias.mul_(2)
        assert torch.equal(encode(model, low, logits, True), 2 * first)


def test_the_private_function_accepts_an_instruction_set() -> None:
    assert _native_encoder(*case(), isa="portable").shape == (3, 25, 6)


def memory_encoder_case() -> cases.Case:
    low, logits, weights, binarize, eps = case()

    def run(low: Tensor, logits: Tensor, *tensors: Tensor, **kwargs: Any) -> Tensor:
        weights = MemoryEncoderWeights.unflatten(tensors)
        return memory_encoder(low, logits, weights, binarize, eps, **kwargs)

    return cases.case_of(run, low, logits, *weights.flatten())


RECORDED: dict[str, Callable[[], cases.Case]] = {"memory_encoder": memory_encoder_case}
