"""Connected components on every backend: the integers of a flood fill and of two libraries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_fast.ops.connected_components import connected_components, small_components
from sam2_fast.ops.core.native import native, no_cpu, no_cuda, no_triton
from sam2_fast.ops.core.registry import BackendError
from tests.ops import cases
from tests.ops.triton_tools import compiled, interpret

ABSENT = {"cuda": no_cuda, "triton": no_triton, "cpu": no_cpu, "torch": lambda: None}
BACKENDS = [
    pytest.param(b, marks=[pytest.mark.gpu] if b in ("cuda", "triton") else []) for b in ABSENT
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = ABSENT[request.param]()
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def on_device(masks: np.ndarray, backend: str) -> torch.Tensor:
    """The masks on the device of `backend`."""
    return torch.from_numpy(masks).to("cuda" if backend in ("cuda", "triton") else "cpu")


def flood_fill(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (1 + index of the first pixel) and areas, one pixel at a time."""
    labels, areas = np.zeros(mask.shape, np.int32), np.zeros(mask.shape, np.int32)
    height, width = mask.shape
    for y, x in np.argwhere(mask):
        if labels[y, x]:
            continue
        queue = deque([(y, x)])
        component = [(y, x)]
        labels[y, x] = 1 + y * width + x
        while queue:
            cy, cx = queue.popleft()
            for ny in range(max(cy - 1, 0), min(cy + 2, height)):
                for nx in range(max(cx - 1, 0), min(cx + 2, width)):
                    if mask[ny, nx] and not labels[ny, nx]:
                        labels[ny, nx] = 1 + y * width + x
                        queue.append((ny, nx))
                        component.append((ny, nx))
        for fy, fx in component:
            areas[fy, fx] = len(component)
    return labels, areas


def spiral(size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    y, x = 0, 0
    dy, dx = 0, 1
    left, top = 0, 0
    right, bottom = size - 1, size - 1
    while left <= right and top <= bottom:
        mask[y, x] = True
        if (
            (dx == 1 and x == right)
            or (dx == -1 and x == left)
            or (dy == 1 and y == bottom)
            or (dy == -1 and y == top)
        ):
            if dx == 1:
                top += 2
            elif dy == 1:
                right -= 2
            elif dx == -1:
                bottom -= 2
            else:
                left += 2
            dy, dx = dx, -dy
            if left > right or top > bottom:
                break
        y, x = y + dy, x + dx
    return mask


def noise(density: float, height: int, width: int, count: int = 2) -> np.ndarray:
    return (
        np.random.default_rng(int(density * 1000) + height).random((count, height, width)) < density
    )


CASES = {
    "one pixel on": np.ones((1, 1, 1), bool),
    "one pixel off": np.zeros((1, 1, 1), bool),
    "all on": np.ones((2, 67, 93), bool),
    "all off": np.zeros((2, 33, 32), bool),
    "checkerboard": (np.indices((65, 70)).sum(0) % 2 == 0)[None],
    "dots": ((np.indices((65, 70)) % 2).sum(0) == 0)[None],
    "spiral": spiral(101)[None],
    "spiral, mirrored and rotated": np.ascontiguousarray(
        np.stack([spiral(64)[:, ::-1], spiral(64)[::-1].T])
    ),
    "one row": noise(0.6, 1, 300),
    "one column": noise(0.6, 300, 1),
    "comb": np.ascontiguousarray(
        np.stack([np.tile([True, False], 50)[None].repeat(60, 0)] * 2)
        | (np.arange(60) == 59)[None, :, None]
    ),
    **{f"noise {d}": noise(d, 71, 131) for d in (0.1, 0.3, 0.4, 0.45, 0.5, 0.6, 0.9)},
    "many masks": noise(0.4, 17, 19, count=300),
}


@pytest.mark.proves("reference", "connected_components:cpu")
@pytest.mark.proves("gpu test", "connected_components:cuda", "connected_components:triton")
@pytest.mark.parametrize("name", CASES)
def test_labels_and_areas_equal_a_flood_fill(backend: str, name: str) -> None:
    masks = CASES[name]
    labels, areas = connected_components(on_device(masks, backend), backend=backend)
    expected = [flood_fill(mask) for mask in masks]
    assert labels.dtype == areas.dtype == torch.int32
    assert np.array_equal(labels.cpu().numpy(), np.stack([e[0] for e in expected]))
    assert np.array_equal(areas.cpu().numpy(), np.stack([e[1] for e in expected]))


@pytest.mark.parametrize("shape", [(0, 5, 5), (3, 0, 5), (3, 5, 0), (0, 0, 0)])
def test_empty_input_gives_empty_output(backend: str, shape: tuple[int, ...]) -> None:
    masks = on_device(np.zeros(shape, bool), backend)
    labels, areas = connected_components(masks, backend=backend)
    assert labels.shape == areas.shape == small_components(masks, 3, backend=backend).shape == shape


@pytest.mark.parametrize("density", [0.2, 0.4, 0.5])
def test_the_partition_equals_that_of_scipy_and_cc3d(backend: str, density: float) -> None:
    ndimage, cc3d = pytest.importorskip("scipy.ndimage"), pytest.importorskip("cc3d")
    mask = noise(density, 301, 257, count=1)
    labels = connected_components(on_device(mask, backend), backend=backend)[0][0].cpu().numpy()
    for expected in (
        ndimage.label(mask[0], np.ones((3, 3)))[0],
        cc3d.connected_components(mask[0], connectivity=8),
    ):
        pairs = np.unique(np.stack([labels.ravel(), expected.astype(np.int64).ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


@pytest.mark.proves("reference", "small_components:cpu")
@pytest.mark.proves("gpu test", "small_components:cuda", "small_components:triton")
@pytest.mark.parametrize("max_area", [1, 2, 8, 15, 16, 17, 100])
@pytest.mark.parametrize(
    "name", ["noise 0.3", "noise 0.45", "spiral", "dots", "many masks", "all on"]
)
def test_small_components_have_at_most_max_area(backend: str, name: str, max_area: int) -> None:
    masks = CASES[name]
    areas = np.stack([flood_fill(mask)[1] for mask in masks])
    small = small_components(on_device(masks, backend), max_area, backend=backend)
    assert small.dtype == torch.bool
    assert np.array_equal(small.cpu().numpy(), (areas > 0) & (areas <= max_area))


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=24)),
    st.integers(1, 20),
)
def test_random_masks_on_the_cpu(masks: np.ndarray, max_area: int) -> None:
    expected = [flood_fill(mask) for mask in masks]
    areas = np.stack([e[1] for e in expected])
    for backend in ("cpu", "torch"):
        if ABSENT[backend]():
            continue
        output = connected_components(torch.from_numpy(masks), backend=backend)
        assert np.array_equal(output[0].numpy(), np.stack([e[0] for e in expected]))
        assert np.array_equal(output[1].numpy(), areas)
        small = small_components(torch.from_numpy(masks), max_area, backend=backend).numpy()
        assert np.array_equal(small, (areas > 0) & (areas <= max_area))


def test_strides_a_channel_axis_and_uint8_are_accepted(backend: str) -> None:
    masks = on_device(noise(0.4, 40, 60), backend)
    expected = connected_components(masks, backend=backend)
    transposed = masks.transpose(1, 2).contiguous().transpose(1, 2)
    every_second = masks.repeat_interleave(2, dim=2)[..., ::2]
    for other in (transposed, every_second, masks.to(torch.uint8) * 255):
        assert all(map(torch.equal, expected, connected_components(other, backend=backend)))
    labels, areas = connected_components(masks[:, None], backend=backend)
    assert torch.equal(labels[:, 0], expected[0]) and torch.equal(areas[:, 0], expected[1])


def test_every_pixel_of_the_output_is_written(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = on_device(noise(0.3, 45, 77), backend)
    expected = connected_components(masks, backend="torch")
    empty = torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *a, **k: empty(*a, **k).fill_(True if k.get("dtype") is torch.bool else -77),
    )
    labels, areas = connected_components(masks, backend=backend)
    assert torch.equal(labels, expected[0]) and torch.equal(areas, expected[1])
    assert torch.equal(small_components(masks, 8, backend=backend), (areas > 0) & (areas <= 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8])
def test_other_dtypes_are_refused_with_advice(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"masks: expected bool or uint8.*masks > 0"):
        connected_components(torch.zeros(1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("shape", [(4, 4), (1, 2, 4, 4), (4,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"masks: expected shape \[N, H, W\]"):
        connected_components(torch.zeros(shape, dtype=torch.bool))


def test_a_backend_that_cannot_run_or_is_unknown_raises() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    with pytest.raises(
        BackendError, match=r"connected_components: cuda refuses: .*Would run: (cpu|torch)"
    ):
        connected_components(masks, backend="cuda")
    with pytest.raises(ValueError, match="backend: expected 'auto'"):
        connected_components(masks, backend="metal")
    with pytest.raises(ValueError, match="max_area"):
        small_components(masks, -1)


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 5, 7), (0, 5, 7)])
def test_results_are_written_to_out(backend: str, shape: tuple[int, ...]) -> None:
    masks = on_device(np.random.default_rng(0).random(shape) > 0.5, backend)
    out = tuple(torch.full(shape, -1, dtype=torch.int32, device=masks.device) for _ in range(2))
    output = connected_components(masks, backend=backend, out=out)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(output, out, strict=True))
    assert all(map(torch.equal, output, connected_components(masks, backend=backend)))


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: (a.long(), b),
        lambda a, b: (a, b[:1]),
        lambda a, b: (a, b.mT.contiguous().mT),
        lambda a, b: (a, a),
        lambda a, b: (a, b.to("meta")),
    ],
    ids=["dtype", "shape", "strides", "the same memory", "device"],
)
def test_out_that_does_not_fit_is_refused_and_not_written(change: Callable[..., Any]) -> None:
    out = tuple(torch.full((2, 5, 5), -1, dtype=torch.int32) for _ in range(2))
    with pytest.raises(ValueError, match=r"^out: "):
        connected_components(torch.ones(2, 5, 5, dtype=torch.bool), out=change(*out))
    assert (out[0] == -1).all() and (out[1] == -1).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads: int) -> None:
    if no_cpu():
        pytest.skip(str(no_cpu()))
    default_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for name in ("all on", "noise 0.45", "many masks", "one row", "spiral"):
            masks = torch.from_numpy(CASES[name])
            output = connected_components(masks, backend="cpu")
            assert all(map(torch.equal, output, connected_components(masks, backend="torch")))
    finally:
        torch.set_num_threads(default_threads)


def test_the_binding_checks_its_arguments() -> None:
    module = native()
    if module is None:
        pytest.skip(str(no_cpu()))
    masks, out = torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 4, 6, dtype=torch.int32)
    for invalid in (
        torch.zeros(2, 4, 5, dtype=torch.int32),
        torch.zeros(2, 6, 4, dtype=torch.int32).transpose(1, 2),
        out.long(),
    ):
        with pytest.raises(ValueError, match="areas: expected"):
            module.connected_components(masks, out, invalid, 1)
    with pytest.raises(ValueError, match="masks: expected bool or uint8"):
        module.connected_components(masks.float(), out, out, 1)


SAMPLES = [
    torch.zeros(0, 4, 4, dtype=torch.bool),
    torch.ones(1, 5, 7, dtype=torch.bool),
    torch.rand(3, 9, 8)[..., ::2] > 0.5,
]


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_opcheck_passes(index: int) -> None:
    torch.library.opcheck(torch.ops.sam2_fast.connected_components.default, (SAMPLES[index],))
    torch.library.opcheck(torch.ops.sam2_fast.small_components.default, (SAMPLES[index], 3))


def test_fake_tensors_have_the_shapes_and_dtypes_of_the_results() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        labels, areas = connected_components(torch.zeros(2, 5, 5, dtype=torch.bool))
    assert labels.shape == areas.shape == (2, 5, 5) and labels.dtype == torch.int32


def test_it_compiles_as_one_graph() -> None:
    masks = torch.from_numpy(CASES["noise 0.4"])

    def run(masks: torch.Tensor) -> torch.Tensor:
        return small_components(masks, 8).sum() + connected_components(masks)[1].sum()

    assert torch.compile(run, fullgraph=True, backend="eager")(masks) == run(masks)


INTERPRETED = """
import numpy as np
from sam2_fast.kernels import connected_components as kernels
from sam2_fast.ops.connected_components import connected_components_reference

kernels.BLOCK = 256
for density, shape in (
    (0.45, (2, 23, 31)),
    (0.6, (1, 1, 300)),
    (1.0, (1, 20, 20)),
    (0.0, (1, 3, 3)),
    (0.3, (3, 17, 9)),
):
    masks = torch.from_numpy(np.random.default_rng(0).random(shape) < density)
    expected = connected_components_reference(masks)
    assert all(map(torch.equal, kernels.connected_components(masks), expected))
"""


@pytest.mark.proves("interpreted", "connected_components:triton", "small_components:triton")
def test_the_triton_kernels_equal_the_reference_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    interpret(INTERPRETED)


@pytest.mark.proves("compiled", "connected_components:triton", "small_components:triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_triton_kernels_compile_without_a_gpu(capability: int) -> None:
    pytest.importorskip("triton")
    from sam2_fast.kernels import connected_components as kernels

    pointers = {"masks": "*u8", "labels": "*i32", "areas": "*i32"}
    for name in ("init", "merge", "count", "spread"):
        kernel = getattr(kernels, f"{name}_kernel")
        types = dict.fromkeys(kernel.arg_names, "i64") | pointers
        types |= {"height": "i32", "width": "i32"}
        program = compiled(kernel, types, {"BLOCK": 1024}, capability, aligned=False, num_warps=8)
        assert program.asm["cubin"]


def masks_case(run: Callable[..., Any]) -> cases.Case:
    empty = torch.zeros(2, 9, 11, dtype=torch.bool)  # the definition ends after one iteration
    generator = torch.Generator().manual_seed(1)
    return cases.Case(run, (empty,), (torch.rand(empty.shape, generator=generator) < 0.6,))


FIXED_BY_VALUES: dict[str, Callable[[], cases.Case]] = {
    "connected_components": lambda: masks_case(connected_components),
    "small_components": lambda: masks_case(
        lambda masks, **kwargs: small_components(masks, 3, **kwargs)
    ),
}
