"""The fused mask decoder: every instruction set against the definition in float64, and what the
public function promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sam2_fast.config import Options, Sam2Config
from sam2_fast.model.mask_decoder import MaskDecoder
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
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
from tests.ops.cases import changed, narrowed
from tests.ops.errors import Errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
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
) -> Case:
    """`scale` makes peaked attention; `absent` leaves some objects with fewer tokens."""
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
    half, weights = dim // 2, []
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
    maps = (
        random(frames, 2 * height, 2 * width, dim // 4),
        random(frames, 4 * height, 4 * width, dim // 8),
    )
    position, prompts = random(height * width, dim), random(objects, tokens, dim)
    image, values = random(images, height, width, dim), first - 1 + masks
    weights[88:88] = [*linear(24, dim), *linear(24, 24), *linear(values, 24)]
    named = MaskDecoderWeights.unflatten(weights)
    return Case(image, *maps, position, prompts, present, named, heads, first, 0, best)


def upscaling(matrix: Tensor) -> Tensor:
    """A matrix [4 * O, I], rows by place in the 2 x 2 cell, then channel, as a transposed
    convolution [I, O, 2, 2].
    """
    return matrix.unflatten(0, (2, 2, -1)).permute(3, 2, 0, 1)


def poisoned(given: Case, isa: str, threads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel itself, into memory full of NaN."""
    module = native()
    assert module is not None
    count, size = given.prompts.shape[0], [4 * s for s in given.image.shape[1:3]]
    logits = torch.full((count, 1 if given.best else len(given.weights.masks), *size), torch.nan)
    iou, tokens = (
        torch.full((count, given.weights.iou.linear3.bias.shape[0]), torch.nan),
        torch.full(given.prompts.shape, torch.nan),
    )
    weights = module.MaskDecoderWeights(
        cpu_weights(given.weights, given.weights.final_attention.q.weight.dtype)
    )
    position, prompts = given.position.float(), given.prompts.float()
    module.mask_decoder(
        given.image,
        given.mid,
        given.high,
        position,
        prompts,
        given.present,
        weights,
        given.num_heads,
        given.first_mask_token,
        given.iou_token,
        given.best,
        logits,
        tokens,
        iou,
        threads,
        isa,
    )
    return logits, iou, tokens


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


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
        "a block and a part",
        "one block",
        "an image each",
        "hints and absent tokens",
        "one token",
        "many tokens",
    ],
)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, scale: float, shape: dict[str, Any]
) -> None:
    errors = Errors()
    for draw in range(12 if shape.get("objects", 3) <= 3 else 3):
        given = cast(case(**shape, scale=scale, draw=draw), dtype)
        exact = mask_decoder_reference(*cast(given, torch.float64))
        there = (
            torch.ones(given.prompts.shape[:2], dtype=torch.bool)
            if given.present is None
            else given.present
        )
        ours, torchs = poisoned(given, isa), mask_decoder_reference(*given)
        assert (ours[2][~there] == 0).all()  # tokens that do not exist become zero
        errors.add(*((logits, iou, tokens[there]) for logits, iou, tokens in (ours, torchs, exact)))
    errors.check()


def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(isa: str) -> None:
    given = case(height=9, width=16, absent=True)
    whole = poisoned(given, isa, threads=1)
    for threads in (1, 2, 3, 7):
        assert all(map(torch.equal, poisoned(given, isa, threads), whole))
    assert given.present is not None
    for i in range(3):
        alone = poisoned(
            given._replace(prompts=given.prompts[i : i + 1], present=given.present[i : i + 1]), isa
        )
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, whole, strict=True))
    apart = given._replace(
        image=given.image.expand(3, -1, -1, -1).contiguous(),
        mid=given.mid.expand(3, -1, -1, -1).contiguous(),
        high=given.high.expand(3, -1, -1, -1).contiguous(),
    )
    assert torch.equal(poisoned(apart, isa)[0], whole[0])


def test_absent_tokens_do_not_matter(isa: str) -> None:
    given = case(absent=True)
    clean = poisoned(given, isa)
    assert given.present is not None
    given.prompts[~given.present] = torch.nan
    assert all(map(torch.equal, poisoned(given, isa), clean))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_best_mask_alone_is_the_one_of_highest_predicted_iou_to_the_bit(
    isa: str, dtype: torch.dtype
) -> None:
    given = case(objects=16, masks=3)
    iou = {
        name: x * 3 if name.endswith("weight") else x * 0
        for name, x in given.weights.named()
        if name.startswith("iou")
    }
    # So that objects differ.
    given = cast(given._replace(weights=given.weights.with_tensors(iou)), dtype)
    whole, best = poisoned(given, isa), poisoned(given._replace(best=True), isa)
    choice = whole[1][:, 1:].argmax(-1)
    assert len(choice.unique()) > 1  # else this shows nothing
    assert torch.equal(best[0][:, 0], whole[0][torch.arange(16), choice]) and all(
        map(torch.equal, best[1:], whole[1:])
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_of_equal_masks_the_first_is_the_best_and_not_a_number_is_largest(backend: str) -> None:
    given = case(objects=2, masks=3, best=True)
    zeros = {name: x * 0 for name, x in given.weights.named() if name.startswith("iou")}
    for bias, expected in (
        ([0.0, 0.0, 0.0, 0.0], 0),
        ([9.0, 0.0, 1.0, 1.0], 1),
        ([0.0, 1.0, torch.nan, torch.nan], 1),
    ):
        weights = given.weights.with_tensors(zeros | {"iou.linear3.bias": torch.tensor(bias)})
        logits = mask_decoder(*given._replace(weights=weights), backend=backend)[0]
        every = mask_decoder(*given._replace(weights=weights, best=False), backend=backend)[0]
        assert torch.allclose(logits[:, 0], every[:, expected], atol=1e-5)


def test_not_a_number_spoils_its_object_and_nothing_else(isa: str) -> None:
    given = case()
    clean = poisoned(given, isa)[0]
    given.prompts[1, 4, 3] = torch.nan
    found = poisoned(given, isa)[0]
    assert found[1].isnan().all() and torch.equal(found[[0, 2]], clean[[0, 2]])


def test_the_callers_autocast_decides_the_dtype_of_products() -> None:
    given = case()
    with torch.autocast("cpu", torch.bfloat16):
        logits, iou, tokens = mask_decoder(*given)
    narrow = given._replace(weights=narrowed(given.weights))
    expected = mask_decoder(*narrow)
    assert logits.dtype == iou.dtype == tokens.dtype == torch.float32
    assert all(map(torch.equal, (logits, iou, tokens), expected))


def test_any_strides() -> None:
    given = case()
    image = given.image.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    spread = given._replace(
        image=image,
        weights=given.weights.mapped(lambda _, w: w.transpose(0, -1).contiguous().transpose(0, -1)),
    )
    assert torch.equal(mask_decoder(*spread)[0], mask_decoder(*given)[0])


def test_nothing_to_do() -> None:
    logits, iou, tokens = mask_decoder(*case(objects=0))
    assert logits.shape == (0, 3, 20, 28) and iou.shape == (0, 4) and tokens.shape == (0, 8, 32)


def test_auto_is_the_native_kernel_on_a_cpu() -> None:
    given = case()
    assert torch.equal(mask_decoder(*given)[0], mask_decoder(*given, backend="cpu")[0])
    assert not torch.equal(mask_decoder(*given)[0], mask_decoder(*given, backend="torch")[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (lambda c: changed(c, "layers[0].self_attention.q.weight", lambda w: w.half()), "float16"),
        (lambda c: c._replace(image=c.image.requires_grad_()), "gradients"),
        (lambda c: c._replace(image=c.image.to("meta")), "meta"),
        (lambda c: c._replace(present=torch.zeros(3, 8, dtype=torch.bool)), "marked absent"),
    ],
)
def test_the_kernel_says_why_it_refuses(change: Callable[[Case], Case], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"mask_decoder: cpu refuses: .*{reason}.*Would run: torch"
    ):
        mask_decoder(*change(case()), backend="cpu")


def with_two_values(given: Case) -> Case:
    last = {
        f"iou.linear3.{part}": dict(given.weights.named())[f"iou.linear3.{part}"][:2]
        for part in ("weight", "bias")
    }
    return given._replace(weights=given.weights.with_tensors(last))


WRONG: list[tuple[Callable[[Case], Case], str]] = [
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
    (lambda c: with_two_values(c), "iou_token: .* predicts 2 values"),
    (lambda c: c._replace(num_heads=3), "num_heads: expected a divisor of 16"),
    (lambda c: c._replace(first_mask_token=6), "first_mask_token: expected 3 mask tokens among 8"),
]
WRONG_WEIGHTS: list[tuple[Callable[[Case], Case], str]] = [
    (
        lambda c: c._replace(weights=MaskDecoderWeights.unflatten(c.weights.flatten()[:-1])),
        "weights: expected 94 tensors and 6 for each .*, got 111",
    ),
    (
        lambda c: changed(c, "layers[1].self_attention.q.weight", lambda w: w[1:]),
        r"weights.layers\[1\].self_attention.q.weight: expected shape",
    ),
    (lambda c: changed(c, "up1.bias", lambda w: w[1:]), "weights.up1.bias: expected shape"),
    (
        lambda c: changed(c, "iou.linear3.weight", lambda w: w[:, 1:]),
        "weights.iou.linear3.weight: expected shape",
    ),
    (
        lambda c: changed(c, "masks[1].linear2.bias", lambda w: w[1:]),
        r"weights.masks\[1\].linear2.bias: expected shape",
    ),
]
"""Refused when they are made: no op and no binding gets them."""


@pytest.mark.parametrize(("change", "words"), [*WRONG, *WRONG_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(change: Callable[[Case], Case], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mask_decoder(*change(case()))


@pytest.mark.parametrize(("change", "_"), WRONG, ids=[words for _, words in WRONG])
def test_the_binding_checks_for_itself(change: Callable[[Case], Case], _: str) -> None:
    module = native()
    assert module is not None
    given = change(case())
    with pytest.raises(ValueError, match="expected"):
        module.mask_decoder(
            given.image.contiguous(),
            given.mid,
            given.high,
            given.position,
            given.prompts,
            given.present,
            module.MaskDecoderWeights(cpu_weights(given.weights, torch.float32)),
            given.num_heads,
            given.first_mask_token,
            given.iou_token,
            given.best,
            torch.zeros(3, 3, 20, 28),
            torch.zeros(3, 8, 32),
            torch.zeros(3, 4),
            2,
            "portable",
        )


def test_opcheck() -> None:
    for given in (case(objects=2), case(absent=True, best=True)):
        torch.library.opcheck(
            torch.ops.sam2_fast.mask_decoder.default,
            tuple(given._replace(weights=given.weights.flatten())),
        )


def test_gradients_flow_through_the_definition_and_match_the_transposed_convolutions() -> None:
    """Upscaling as a matrix is the transposed convolution of the checkpoint."""
    config = Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    model, dim = MaskDecoder(config).double(), 256
    low, high, mid = (
        torch.randn(1, c, s, s).double() for c, s in ((dim, 4), (dim // 8, 16), (dim // 4, 8))
    )
    sparse, place = torch.randn(2, 2, dim).double(), torch.randn(1, dim, 4, 4).double()
    found = model(
        low, place, sparse, torch.zeros(1, dim, 1, 1).double(), high, mid, True, Options()
    )
    found.logits.sum().backward()
    assert all(
        p.grad is not None
        for name, p in model.named_parameters()
        if "transformer" in name or "upscaling" in name
    )
    x = torch.randn(2, dim, 4, 4).double()
    up1 = model.output_upscaling[0]
    assert isinstance(up1, torch.nn.ConvTranspose2d) and up1.bias is not None
    matrix = cell_matrix(UpscalingWeights(up1.weight, up1.bias))
    found = spread(torch.nn.functional.linear(x.permute(0, 2, 3, 1), matrix)) + up1.bias
    assert (found.permute(0, 3, 1, 2) - up1(x)).abs().max() < 1e-12


def test_narrower_sets_are_only_for_tests() -> None:
    assert _native_decoder(*case(), isa="portable")[0].shape == (3, 3, 20, 28)


def of_mask_decoder() -> cases.Case:
    c = case(height=2, width=3, objects=3, absent=True, best=True)
    assert c.present is not None
    tensors = (c.image, c.mid, c.high, c.position, c.prompts, c.present, *c.weights.flatten())
    return cases.drawn(
        lambda *t, **how: mask_decoder(*t[:6], MaskDecoderWeights.unflatten(t[6:]), *c[7:], **how)[
            :2
        ],
        *tensors,
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"mask_decoder": of_mask_decoder}
