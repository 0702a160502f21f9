"""Connected components of 64 masks, against scipy, OpenCV and cc3d.

On a GPU backends are compared with the rate at which memory can be read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Case, Options, Row, interleaved, require, rows
from sam2_fast.ops.connected_components import (
    connected_components,
    connected_components_reference,
    small_components,
)
from sam2_fast.ops.core.registry import backends

COUNT = 64
LIMIT_BYTES = 1 + 4 + 4  # per pixel: the mask is read once, its label and area are written once
# Rates of a copy on the device, for "% of limit".
GPU_GB_S = {
    "H200": 4300.0,
    "H100": 3000.0,
    "A100": 1800.0,
}


def blobs(count: int, size: int) -> np.ndarray:
    """Smooth shapes with one pixel in a thousand flipped, like the output of a mask decoder.

    [count, size, size] bool.
    """
    generator = torch.Generator().manual_seed(size)
    coarse = torch.randn(count, 1, size // 32, size // 32, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[:, 0]
    return ((smooth > 0.1) ^ (torch.rand(count, size, size, generator=generator) < 0.001)).numpy()


def cpu_peers(
    masks: np.ndarray,
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], np.ndarray]]]:
    """Name -> a function to time, and a conversion of its result for the comparison.

    The conversion returns areas [N, H, W], or labels [N, H, W] if the function computes no areas.
    """
    peers: dict[str, tuple[Callable[[], Any], Callable[[Any], np.ndarray]]] = {}
    images = masks.view(np.uint8)

    def areas_per_pixel(results: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return np.stack([np.where(labels > 0, areas[labels], 0) for labels, areas in results])

    if find_spec("scipy"):
        from scipy import ndimage

        def scipy_run() -> list[tuple[np.ndarray, np.ndarray]]:
            labelled = [ndimage.label(m, np.ones((3, 3)))[0] for m in images]
            return [(labels, np.bincount(labels.ravel())) for labels in labelled]

        peers["scipy with areas"] = (scipy_run, areas_per_pixel)
    if find_spec("cv2"):
        import cv2

        def opencv_run() -> list[tuple[np.ndarray, np.ndarray]]:
            stats = [cv2.connectedComponentsWithStats(m, connectivity=8)[1:3] for m in images]
            return [(labels, table[:, cv2.CC_STAT_AREA]) for labels, table in stats]

        peers["OpenCV with areas"] = (opencv_run, areas_per_pixel)
    if find_spec("cc3d"):
        import cc3d

        def cc3d_labels() -> list[np.ndarray]:
            return [cc3d.connected_components(m, connectivity=8) for m in images]

        def cc3d_areas() -> list[tuple[np.ndarray, np.ndarray]]:
            return [(labels, cc3d.statistics(labels)["voxel_counts"]) for labels in cc3d_labels()]

        peers["cc3d labels only"] = (cc3d_labels, lambda labels: np.stack(labels))
        peers["cc3d with areas"] = (cc3d_areas, areas_per_pixel)
    return peers


def same_partition(labels: np.ndarray, others: np.ndarray) -> bool:
    """Whether two labellings divide a mask into the same components.

    They do if the pairs of labels that occur are a one-to-one relation.
    """
    pairs = np.unique(np.stack([labels.ravel(), others.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def on_cpu(case: str, size: int, options: Options) -> Iterator[Row]:
    """Labels and areas in new tensors, against the peers, each in its own output format."""
    array = blobs(COUNT, size)
    masks = torch.from_numpy(array)
    labels, areas = connected_components(masks)
    peers = cpu_peers(array)
    for name, (run, convert) in peers.items():
        result = convert(run())
        if "labels" in name:
            require(
                all(same_partition(a, b) for a, b in zip(labels.numpy(), result, strict=True)),
                case,
                name,
            )
        else:
            require(np.array_equal(areas.numpy(), result), case, name)
    small = small_components(masks, 8)
    require(torch.equal(small, (areas > 0) & (areas <= 8)), case, "small_components")
    functions: dict[str, Callable[[], Any]] = {
        "sam2_fast with areas": lambda masks=masks: connected_components(masks),
        "sam2_fast with areas, into the same memory": lambda masks=masks, out=(labels, areas): (
            connected_components(masks, out=out)
        ),
        "sam2_fast small_components(8)": lambda masks=masks: small_components(masks, 8),
        **{name: run for name, (run, _) in peers.items()},
    }
    measured = rows(case, interleaved(functions, options))
    ours = measured[0].median_ms
    yield from (row.with_notes({"x ours": row.median_ms / ours}) for row in measured)


def on_gpu(case: str, size: int, options: Options) -> Iterator[Row]:
    """Every backend that is available, with its bandwidth and number of launches."""
    usable = [
        s.backend
        for s in backends()
        if s.op == "connected_components" and s.available and s.backend in ("cuda", "triton")
    ]
    peak = next(
        (v for k, v in GPU_GB_S.items() if k in torch.cuda.get_device_name(options.device)), None
    )
    masks = torch.from_numpy(blobs(COUNT, size)).to(options.device)
    expected = connected_components_reference(masks)
    functions: dict[str, Callable[[], Any]] = {}
    for backend in usable:
        output = connected_components(masks, backend=backend)
        is_equal = all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
        require(is_equal, case, backend)
        small = small_components(masks, 8, backend=backend)
        require(
            torch.equal(small, (expected[1] > 0) & (expected[1] <= 8)),
            case,
            f"small_components {backend}",
        )
        functions[backend] = lambda masks=masks, backend=backend: connected_components(
            masks, backend=backend
        )
        functions[f"{backend} small_components(8)"] = lambda masks=masks, backend=backend: (
            small_components(masks, 8, backend=backend)
        )
    for row in rows(case, interleaved(functions, options)):
        bytes_moved = masks.numel() * (2 if "small" in row.implementation else LIMIT_BYTES)
        rate = bytes_moved / row.median_ms / 1e6
        notes: dict[str, Any] = {
            "useful GB/s": rate,
            "launches": launches(functions[row.implementation]),
        }
        if peak:
            notes["% of limit"] = 100 * rate / peak
        yield row.with_notes(notes)


def launches(function: Callable[[], Any]) -> int:
    """Number of kernels and memory fills that one call enqueues."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return sum(
        1 for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA
    )


def measure(options: Options) -> Iterator[Case]:
    """Masks of 256 x 256 and of 1024 x 1024."""
    for size in (256,) if options.quick else (256, 1024):
        function = on_gpu if options.device.type == "cuda" else on_cpu
        yield Case(f"{COUNT} masks of {size} x {size}", function, (size, options))
