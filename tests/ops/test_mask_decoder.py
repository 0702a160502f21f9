"""The fused mask decoder: errors of every instruction set against the definition in float64, and
the behaviour of the public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.config import Sam2Config
from sam2_fast.model.mask_decoder import MaskDecoder
from sam2_fast.ops.core.native import native
from sam2_fast.ops.mask_decoder import (
    MaskDecoderWeights,
    _native_decoder,
    cpu_weights,
    mask_decoder,
)
from sam2_fast.ops.mask_decoder.reference import cell_matrix, mask_decoder_reference, spread
from sam2_fast.ops.mask_decoder.weights import UpscalingWeights
from sam2_fast.proving.errors import cast
from tests.ops import cases
from tests.ops.cases import with_matrix_dtype
from tests.ops.errors import Errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Inputs(NamedTuple):
    """Arguments of the op."""

    image: Tensor
    mid: Tensor
    high: Tensor
    position: Tensor
    prompts: Tensor
    present: Tensor | None
    weights: MaskDecoderWeights
    num_heads: int
    first_mask_token: int
    iou_token: int
    best: bool


def case(
    height: int = 5,
    width: int = 7,
    objects: int = 3,
    tokens: int = 8,
    images: int = 1,
    frames: int = 1,
    masks: int = 3,
    dim: int = 32,
    hidden: int = 40,
    heads: int = 4,
    absent: bool = False,
    scale: float = 1.0,
    first: int = 2,
    best: bool = False,
    draw: int = 0,
) -> Inputs:
    """Arguments of the op. A large `scale` makes attention peaked; with `absent`, objects lack
    some of the tokens, in three ways by turns; `objects` is then a multiple of three.
    """
    generator = torch.Generator().manual_seed(height * 100 + tokens + 1000 * draw)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def linear(out: int, into: int, factor: float = 1.0) -> list[Tensor]:
        return [random(out, into) * into**-0.5 * factor, random(out) * 0.3]

    def attention(inner: int) -> list[Tensor]:
        return [
            *linear(inner, dim, scale),
            *linear(inner, dim),
            *linear(inner, dim),
            *linear(dim, inner),
        ]

    norm = [torch.ones(dim), torch.zeros(dim)]
    half = dim // 2
    weights: list[Tensor] = []
    for _ in range(2):
        mlp = [*linear(hidden, dim), *linear(dim, hidden)]
        weights += [
            *attention(dim),
            *norm,
            *attention(half),
            *norm,
            *mlp,
            *norm,
            *norm,
            *attention(half),
        ]
    up1, up2 = (upscaling(linear(*sizes)[0]) for sizes in ((dim, dim), (half, dim // 4)))
    weights += [
        *attention(half),
        *norm,
        up1,
        random(dim // 4),
        random(dim // 4),
        random(dim // 4),
        up2,
        random(dim // 8),
    ]
    for _ in range(masks):
        weights += [*linear(dim, dim), *linear(dim, dim), *linear(dim // 8, dim)]
    present = None
    if absent:
        present = torch.arange(tokens) < torch.tensor([[tokens], [tokens - 1], [5]])
        present[0, tokens - 2] = False
        present = present.repeat(objects // 3, 1)
    maps = (
        random(frames, 2 * height, 2 * width, dim // 4),
        random(frames, 4 * height, 4 * width, dim // 8),
    )
    position, prompts = random(height * width, dim), random(objects, tokens, dim)
    image = random(images, height, width, dim)
    iou_values = first - 1 + masks
    weights[88:88] = [*linear(24, dim), *linear(24, 24), *linear(iou_values, 24)]
    named_weights = MaskDecoderWeights.unflatten(weights)
    return Inputs(image, *maps, position, prompts, present, named_weights, heads, first, 0, best)


def upscaling(matrix: Tensor) -> Tensor:
    """A matrix [4 * O, I], rows ordered by position in the 2 x 2 cell, then by channel, as the
    weight [I, O, 2, 2] of a transposed convolution.
    """
    return matrix.unflatten(0, (2, 2, -1)).permute(3, 2, 0, 1)


def native_outputs(inputs: Inputs, isa: str, threads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the native kernel, written to memory that is full of NaN."""
    module = native()
    assert module is not None
    count = inputs.prompts.shape[0]
    size = [4 * s for s in inputs.image.shape[1:3]]
    logits = torch.full((count, 1 if inputs.best else len(inputs.weights.masks), *size), torch.nan)
    iou = torch.full((count, inputs.weights.iou.linear3.bias.shape[0]), torch.nan)
    tokens = torch.full(inputs.prompts.shape, torch.nan)
    weights = module.MaskDecoderWeights(
        cpu_weights(inputs.weights, inputs.weights.final_attention.q.weight.dtype)
    )
    module.mask_decoder(
        inputs.image,
        inputs.mid,
        inputs.high,
        inputs.position.float(),
        inputs.prompts.float(),
        inputs.present,
        weights,
        inputs.num_heads,
        inputs.first_mask_token,
        inputs.iou_token,
        inputs.best,
        logits,
        tokens,
        iou,
        threads,
        isa,
    )
    return logits, iou, tokens


@pytest.mark.proves("reference", "mask_decoder:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 8.0], ids="scale {}".format)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"height": 8, "width": 8, "dim": 64, "heads": 2, "hidden": 128, "masks": 4},
        {"images": 3, "frames": 3, "objects": 3},
        {"images": 3, "absent": True},
        {"height": 1, "width": 1, "objects": 40, "masks": 1, "tokens": 2, "first": 1},
        {"height": 9, "width": 8, "tokens": 70, "dim": 16, "heads": 1, "objects": 64},
    ],
    ids=[
        "a block and a partial block",
        "one block",
        "one image per object",
        "absent tokens",
        "one token",
        "many tokens",
    ],
)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: dict[str, Any]
) -> None:
    errors = Errors()
    for draw in range(12 if shape.get("objects", 3) <= 3 else 3):
        inputs = cast(case(**shape, scale=scale, draw=draw), dtype)
        exact = mask_decoder_reference(*cast(inputs, torch.float64))
        present = inputs.present
        if present is None:
            present = torch.ones(inputs.prompts.shape[:2], dtype=torch.bool)
        actual = native_outputs(inputs, isa)
        reference = mask_decoder_reference(*inputs)
        assert (actual[2][~present] == 0).all()  # absent tokens become zero
        results = actual, reference, exact
        errors.add(*((logits, iou, tokens[present]) for logits, iou, tokens in results))
    errors.check()


def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(isa: str) -> None:
    inputs = case(height=9, width=16, absent=True)
    expected = native_outputs(inputs, isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert all(map(torch.equal, native_outputs(inputs, isa, threads), expected))
    assert inputs.present is not None
    for i in range(3):
        one_object = inputs._replace(
            prompts=inputs.prompts[i : i + 1], present=inputs.present[i : i + 1]
        )
        outputs = native_outputs(one_object, isa)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(outputs, expected, strict=True))
    one_image_per_object = inputs._replace(
        image=inputs.image.expand(3, -1, -1, -1).contiguous(),
        mid=inputs.mid.expand(3, -1, -1, -1).contiguous(),
        high=inputs.high.expand(3, -1, -1, -1).contiguous(),
    )
    assert torch.equal(native_outputs(one_image_per_object, isa)[0], expected[0])


def test_values_of_absent_tokens_do_not_change_results(isa: str) -> None:
    inputs = case(absent=True)
    clean = native_outputs(inputs, isa)
    assert inputs.present is not None
    inputs.prompts[~inputs.present] = torch.nan
    assert all(map(torch.equal, native_outputs(inputs, isa), clean))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_best_mask_is_bitwise_equal_to_the_one_of_highest_predicted_iou(
    isa: str, dtype: torch.dtype
) -> None:
    inputs = case(objects=16, masks=3)
    # With larger weights and no biases, the best mask differs between objects.
    iou_weights = {
        name: x * 3 if name.endswith("weight") else x * 0
        for name, x in inputs.weights.named()
        if name.startswith("iou")
    }
    inputs = cast(inputs._replace(weights=inputs.weights.with_tensors(iou_weights)), dtype)
    all_masks = native_outputs(inputs, isa)
    best = native_outputs(inputs._replace(best=True), isa)
    choice = all_masks[1][:, 1:].argmax(-1)
    assert len(choice.unique()) > 1
    assert torch.equal(best[0][:, 0], all_masks[0][torch.arange(16), choice])
    assert all(map(torch.equal, best[1:], all_masks[1:]))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_best_of_equal_masks_is_the_first_and_nan_counts_as_largest(backend: str) -> None:
    inputs = case(objects=2, masks=3, best=True)
    zeros = {name: x * 0 for name, x in inputs.weights.named() if name.startswith("iou")}
    for bias, expected in (
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([9.0, 0.0, 1.0, 1.0], 1),
        ([0.0, 1.0, torch.nan, torch.nan], 1),
    ):
        weights = inputs.weights.with_tensors(zeros | {"iou.linear3.bias": torch.tensor(bias)})
        logits = mask_decoder(*inputs._replace(weights=weights), backend=backend)[0]
        all_logits = mask_decoder(*inputs._replace(weights=weights, best=False), backend=backend)[0]
        assert torch.allclose(logits[:, 0], all_logits[:, expected], atol=1e-5)


def test_nan_affects_only_its_object(isa: str) -> None:
    inputs = case()
    clean = native_outputs(inputs, isa)[0]
    inputs.prompts[1, 4, 3] = torch.nan
    logits = native_outputs(inputs, isa)[0]
    assert logits[1].isnan().all() and torch.equal(logits[[0, 2]], clean[[0, 2]])


def test_autocast_of_the_caller_sets_the_compute_dtype() -> None:
    inputs = case()
    with torch.autocast("cpu", torch.bfloat16):
        logits, iou, tokens = mask_decoder(*inputs)
    expected = mask_decoder(*inputs._replace(weights=with_matrix_dtype(inputs.weights)))
    assert logits.dtype == iou.dtype == tokens.dtype == torch.float32
    assert all(map(torch.equal, (logits, iou, tokens), expected))


def test_gradients_flow_through_the_modules() -> None:
    config = Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    model = MaskDecoder.from_config(config).double()
    dim = 256
    low, high, mid = (
        torch.randn(1, c, s, s).double() for c, s in ((dim, 4), (dim // 8, 16), (dim // 4, 8))
    )
    sparse, position = torch.randn(2, 2, dim).double(), torch.randn(1, dim, 4, 4).double()
    dense = torch.zeros(1, dim, 1, 1).double()
    logits, *_ = model(low, position, sparse, dense, True, True, [high, mid])
    logits.sum().backward()
    assert all(
        p.grad is not None
        for name, p in model.named_parameters()
        if "transformer" in name or "upscaling" in name
    )


def test_upscaling_by_a_matrix_equals_the_transposed_convolution_of_the_checkpoint() -> None:
    config = Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    up1 = MaskDecoder.from_config(config).double().output_upscaling[0]
    x = torch.randn(2, 256, 4, 4).double()
    assert isinstance(up1, torch.nn.ConvTranspose2d) and up1.bias is not None
    matrix = cell_matrix(UpscalingWeights(up1.weight, up1.bias))
    output = spread(torch.nn.functional.linear(x.permute(0, 2, 3, 1), matrix)) + up1.bias
    assert (output.permute(0, 3, 1, 2) - up1(x)).abs().max() < 1e-12


def test_the_private_function_accepts_an_instruction_set() -> None:
    assert _native_decoder(*case(), isa="portable")[0].shape == (3, 3, 20, 28)


def mask_decoder_case() -> cases.Case:
    # With three objects, errors of their 12 predicted IoU differ by more than 2 by chance.
    c = case(height=2, width=3, objects=24, absent=True, best=True)
    assert c.present is not None
    tensors = (c.image, c.mid, c.high, c.position, c.prompts, c.present, *c.weights.flatten())

    def run(*tensors: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        weights = MaskDecoderWeights.unflatten(tensors[6:])
        logits, iou, _ = mask_decoder(*tensors[:6], weights, *c[7:], **kwargs)
        return logits, iou

    return cases.case_of(run, *tensors)


RECORDED: dict[str, Callable[[], cases.Case]] = {"mask_decoder": mask_decoder_case}
