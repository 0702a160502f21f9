"""The fused memory encoder: every instruction set against the definition in float64, and what the
public function promises.
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
from sam2_fast.ops.core.layout import Leaf
from sam2_fast.ops.core.native import native
from sam2_fast.ops.core.registry import BackendError
from sam2_fast.ops.memory_encoder import (
    MemoryEncoderWeights,
    _native_encoder,
    cpu_weights,
    memory_encoder,
    memory_encoder_reference,
)
from sam2_fast.proving.errors import cast
from tests.ops import cases
from tests.ops.cases import changed, narrowed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
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
    memory: int = 6,
    channels: tuple[int, ...] = (4, 6, 10, 16),
    blocks: int = 2,
    binarize: bool = False,
    scale: float = 4.0,
    draw: int = 0,
) -> Case:
    """`scale`: of the logits."""
    generator = torch.Generator().manual_seed(height * 100 + width + 10000 * draw)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def layer(*shape: int) -> list[Tensor]:
        return [random(*shape) * math.prod(shape[1:]) ** -0.5, random(shape[0]) * 0.3]

    def norm(count: int) -> list[Tensor]:
        return [1 + 0.2 * random(count), 0.2 * random(count)]

    weights, before = [], 1
    for count in channels:
        weights += [*layer(count, before, 3, 3), *norm(count)]
        before = count
    weights += [*layer(dim, before, 1, 1), *layer(dim, dim, 1, 1)]
    for _ in range(blocks):
        weights += [
            *layer(dim, 1, 7, 7),
            *norm(dim),
            *layer(hidden, dim),
            *layer(dim, hidden),
            random(dim),
        ]
    weights += layer(memory, dim, 1, 1)
    named = MemoryEncoderWeights.unflatten(weights)
    return Case(
        random(images, height, width, dim), random(objects, *logits) * scale, named, binarize, 1e-6
    )


def ready(given: Case) -> MemoryEncoderWeights:
    """Weights as the kernel takes them."""
    return cpu_weights(given.weights, given.weights.out_proj.weight.dtype)


def poisoned(given: Case, isa: str, threads: int = 2) -> Tensor:
    """The kernel itself, into memory full of NaN."""
    module = native()
    assert module is not None
    shape = (
        given.logits.shape[0],
        given.low.shape[1] * given.low.shape[2],
        given.weights.out_proj.bias.shape[0],
    )
    out = torch.full(shape, torch.nan, dtype=given.weights.out_proj.weight.dtype)
    module.memory_encoder(
        given.low,
        given.logits.float(),
        module.MemoryEncoderWeights(ready(given)),
        out,
        given.binarize,
        given.eps,
        threads,
        isa,
    )
    return out


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).square().mean().sqrt().item()


def within(mine: Tensor, given: Case) -> None:
    """The kernel errs at most twice as much as torch does in the same dtype."""
    exact = memory_encoder_reference(*cast(given, torch.float64))
    theirs, rounding = (
        error(memory_encoder_reference(*given), exact),
        error(exact.to(mine.dtype), exact),
    )
    assert error(mine, exact) <= 2 * max(theirs, rounding), (error(mine, exact), theirs, rounding)


SHAPES: dict[str, dict[str, Any]] = {
    "a shared frame": {},
    "a frame each": {"images": 3},
    "tiny": {"height": 3, "width": 3, "logits": (12, 12)},
    "one token": {"height": 1, "width": 1, "logits": (4, 4), "blocks": 1},
    "whole vectors": {"height": 16, "width": 16, "logits": (64, 64), "objects": 1},
    "a vector and one": {"height": 4, "width": 17, "logits": (16, 68), "objects": 2},
    "rows longer than a tile": {"height": 2, "width": 130, "logits": (8, 100), "objects": 1},
    "logits not square": {"height": 3, "width": 4, "logits": (17, 29)},
    "logits of another shape": {"height": 4, "width": 3, "logits": (29, 17), "images": 3},
    "logits of one pixel": {"height": 3, "width": 3, "logits": (1, 1)},
    "logits at full size": {"height": 3, "width": 5, "logits": (48, 80)},
    "logits at full height": {"height": 3, "width": 5, "logits": (48, 33)},
    "logits beyond full size": {"height": 3, "width": 4, "logits": (61, 130)},
    "the model's widths": {
        "height": 4,
        "width": 4,
        "logits": (16, 16),
        "channels": (4, 16, 64, 256),
        "dim": 64,
        "hidden": 256,
        "memory": 16,
    },
    "many blocks": {"height": 9, "width": 8, "blocks": 5, "memory": 33},
}


@pytest.mark.proves("reference", "memory_encoder:cpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("binarize", [False, True], ids=["sigmoid", "binarized"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errs_at_most_twice_as_much_as_torch(
    isa: str, dtype: torch.dtype, binarize: bool, shape: dict[str, Any]
) -> None:
    given = cast(case(**shape, binarize=binarize), dtype)
    within(poisoned(given, isa), given)


@pytest.mark.parametrize("binarize", [False, True], ids=["sigmoid", "binarized"])
@pytest.mark.parametrize("full", [False, True], ids=["resized", "full size"])
def test_sharp_masks_and_logits_of_exactly_zero(isa: str, binarize: bool, full: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    given = case(binarize=binarize)
    # By four: every weight of the resize is exact, and so is which side of zero a pixel is on.
    size = (3, 80, 80) if full else (3, 20, 20)
    logits = torch.tensor([-1000.0, 0.0, 1000.0])[torch.randint(3, size, generator=generator)]
    given = given._replace(logits=logits)
    within(poisoned(given, isa), given)


def test_infinite_logits_at_full_size_are_the_sharpest(isa: str) -> None:
    given = case(height=3, width=3, logits=(48, 48))
    sharp = given.logits.sign() * torch.inf
    assert torch.equal(
        poisoned(given._replace(logits=sharp), isa),
        poisoned(given._replace(logits=given.logits.sign() * 1000), isa),
    )


@pytest.mark.parametrize("images", [1, 3], ids=["a shared frame", "a frame each"])
def test_results_do_not_depend_on_threads_or_the_run_or_the_other_objects(
    isa: str, images: int
) -> None:
    given = case(height=21, width=9, images=images)
    one = poisoned(given, isa, threads=1)
    for threads in (1, 2, 3, 7, 40):
        assert torch.equal(poisoned(given, isa, threads), one)
    for i in range(3):
        alone = given._replace(
            low=given.low[i : i + 1] if images > 1 else given.low, logits=given.logits[i : i + 1]
        )
        assert torch.equal(poisoned(alone, isa), one[i : i + 1])
    apart = given._replace(low=given.low.expand(3, -1, -1, -1).contiguous())
    assert torch.equal(poisoned(apart, isa), one)


def test_not_a_number_spoils_its_object_and_nothing_else(isa: str) -> None:
    for given in (case(height=9, width=7, images=3), case(height=9, width=7)):
        clean = poisoned(given, isa)
        given.logits[1, 10, 10] = torch.nan
        found = poisoned(given, isa)
        assert found[1].isnan().any() and torch.equal(found[[0, 2]], clean[[0, 2]])
        if given.low.shape[0] > 1:
            given.low[2, 4, 4, 3] = torch.nan
            found = poisoned(given, isa)
            assert found[2].isnan().any() and torch.equal(found[0], clean[0])


def test_not_a_number_goes_where_the_definition_has_it(isa: str) -> None:
    given = case(height=16, width=16, logits=(64, 64), objects=1, blocks=1)
    given.low[0, 3, 12, 3] = torch.nan
    given.logits[0, 50, 8] = torch.nan
    assert torch.equal(poisoned(given, isa).isnan(), memory_encoder_reference(*given).isnan())


def test_weights_may_be_narrower_than_the_features(isa: str) -> None:
    """As under autocast: float32 features and norms, bfloat16 products."""
    given = case()
    weights = narrowed(given.weights)
    exact = memory_encoder_reference(*cast(given._replace(weights=weights), torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = error(memory_encoder_reference(*given), exact)
    found = poisoned(given._replace(weights=weights), isa)
    assert found.dtype == torch.bfloat16 and error(found, exact) <= 2 * theirs


def test_the_callers_autocast_decides_the_dtype_of_products() -> None:
    given = case()
    with torch.autocast("cpu", torch.bfloat16):
        found = memory_encoder(*given)
    expected = memory_encoder(given.low, given.logits, narrowed(given.weights), False)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_any_strides() -> None:
    given = case()
    low = given.low.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    def scattered(_: Leaf, w: Tensor) -> Tensor:
        return (
            w.contiguous(memory_format=torch.channels_last)
            if w.ndim == 4
            else w.repeat_interleave(2, 0)[::2]
        )

    weights = given.weights.mapped(scattered)
    spread = given._replace(
        low=low, logits=given.logits.transpose(1, 2).contiguous().transpose(1, 2), weights=weights
    )
    assert torch.equal(memory_encoder(*spread), memory_encoder(*given))


def test_nothing_to_do() -> None:
    assert memory_encoder(*case(objects=0)).shape == (0, 25, 6)
    given = case()
    assert memory_encoder(*given._replace(low=given.low[:, :0])).shape == (3, 0, 6)


def test_auto_is_the_native_kernel_on_a_cpu() -> None:
    given = case()
    assert torch.equal(memory_encoder(*given), memory_encoder(*given, backend="cpu"))
    assert not torch.equal(memory_encoder(*given), memory_encoder(*given, backend="torch"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: cast(c, torch.float64), "float64"),
        (lambda c: changed(c, "last_convolutions[1].weight", lambda w: w.half()), "float16"),
        (lambda c: c._replace(low=c.low.requires_grad_()), "gradients"),
        (lambda c: c._replace(low=c.low.to("meta")), "meta"),
        (lambda _: case(channels=(4, 6, 9, 16)), "even"),
        (lambda _: case(hidden=41), "even"),
        (lambda c: c._replace(logits=c.logits[:, :, :1].expand(3, 20, 16385)), "up to 16384"),
    ],
)
def test_the_kernel_says_why_it_refuses(change: Callable[[Case], Case], reason: str) -> None:
    with pytest.raises(
        BackendError, match=rf"memory_encoder: cpu refuses: .*{reason}.*Would run: torch"
    ):
        memory_encoder(*change(case()), backend="cpu")


def without(c: Case, name: str) -> Case:
    """A row less of a weight."""
    return changed(c, name, lambda w: w[1:])


WRONG: list[tuple[Callable[[Case], Case], str]] = [
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
WRONG_WEIGHTS: list[tuple[Callable[[Case], Case], str]] = [
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
        lambda c: without(c, "first_convolutions[1].bias"),
        r"weights.first_convolutions\[1\].bias: expected shape \(6,\)",
    ),
    (
        lambda c: without(c, "last_convolutions[0].weight"),
        r"weights.last_convolutions\[0\].bias: expected shape",
    ),
    (
        lambda c: without(c, "low_proj.weight"),
        r"weights.low_proj.weight: expected shape \(16, 16, 1, 1\)",
    ),
    (
        lambda c: without(c, "blocks[1].depthwise.weight"),
        r"weights.blocks\[1\].depthwise.weight: expected shape \(16, 1, 7, 7\)",
    ),
    (lambda c: without(c, "blocks[1].gamma"), r"weights.blocks\[1\].gamma: expected shape"),
    (lambda c: without(c, "out_proj.bias"), r"weights.out_proj.bias: expected shape \(6,\)"),
]
"""Refused when they are made: no op and no binding gets them."""


@pytest.mark.parametrize(("change", "words"), [*WRONG, *WRONG_WEIGHTS])
def test_arguments_that_do_not_fit_are_named(change: Callable[[Case], Case], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memory_encoder(*change(case()))


def unchanged(given: Case) -> MemoryEncoderWeights:
    """As `ready`, in the dtypes that they have."""
    return given.weights.converted(
        lambda _, w: w.permute(0, 2, 3, 1).flatten(1).contiguous() if w.ndim == 4 else w
    )


@pytest.mark.parametrize(
    "change",
    [
        *(change for change, _ in WRONG),
        lambda c: c._replace(low=c.low.double()),
        lambda c: c._replace(low=c.low[..., 1:].contiguous()),
        lambda c: c._replace(low=c.low.transpose(1, 2)[:, :4]),
        lambda c: changed(c, "last_convolutions[1].weight", lambda w: w.half()),
        lambda c: case(channels=(4, 5, 10, 16)),
    ],
)
def test_the_binding_checks_for_itself(change: Callable[[Case], Case]) -> None:
    module = native()
    assert module is not None
    given = change(case())
    with pytest.raises(ValueError, match="expected"):
        module.memory_encoder(
            given.low,
            given.logits,
            module.MemoryEncoderWeights(unchanged(given)),
            torch.zeros(3, 25, 6),
            False,
            1e-6,
            2,
            "portable",
        )
    for out in (
        torch.zeros(3, 24, 6),
        torch.zeros(3, 25, 6).double(),
        torch.zeros(3, 25, 12)[..., ::2],
    ):
        with pytest.raises(ValueError, match="out: expected"):
            module.memory_encoder(
                case().low,
                case().logits,
                module.MemoryEncoderWeights(ready(case())),
                out,
                False,
                1e-6,
                2,
                "portable",
            )


def test_opcheck() -> None:
    for given in (case(), case(images=3, binarize=True)):
        torch.library.opcheck(
            torch.ops.sam2_fast.memory_encoder.default,
            tuple(given._replace(weights=given.weights.flatten())),
        )


def test_gradients_flow_through_the_definition_and_the_kernel_gives_its_numbers() -> None:
    model = MemoryEncoder(
        Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    )
    low, logits = torch.randn(1, 256, 4, 4), torch.randn(2, 1, 16, 16) * 4
    found = model(low, logits, False)
    found.sum().backward()
    assert found.shape == (2, 16, 64) and all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        native_found = model(low, logits, False)
        exact = model.double()(low.double(), logits.double(), False)
    assert not torch.equal(native_found, found) and error(native_found, exact) <= 2 * error(
        found.detach(), exact
    )


def test_narrow_matrices_are_kept_until_a_parameter_changes() -> None:
    model = MemoryEncoder(
        Sam2Config(embed_dim=16, stages=(1, 1, 1, 1), global_blocks=(), image_size=64)
    )
    low, logits = torch.randn(1, 256, 4, 4), torch.randn(2, 1, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first = model(low, logits, True)
        assert torch.equal(model(low, logits, True), first)
        model.out_proj.weight.mul_(2)
        model.out_proj.bias.mul_(2)
        assert torch.equal(model(low, logits, True), 2 * first)


def test_narrower_sets_are_only_for_tests() -> None:
    assert _native_encoder(*case(), isa="portable").shape == (3, 25, 6)


def of_memory_encoder() -> cases.Case:
    low, logits, weights, binarize, eps = case()
    named = MemoryEncoderWeights.unflatten
    return cases.drawn(
        lambda low, logits, *w, **how: memory_encoder(low, logits, named(w), binarize, eps, **how),
        low,
        logits,
        *weights.flatten(),
    )


RECORDED: dict[str, Callable[[], cases.Case]] = {"memory_encoder": of_memory_encoder}
