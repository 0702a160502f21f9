"""Kernels are compiled concurrently before they are launched, and forms of kernels are chosen by a
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from sam2_fast.kernels import choices, launch  # noqa: E402
from sam2_fast.kernels.layer_norm import row_statistics_kernel  # noqa: E402
from sam2_fast.kernels.linear import (  # noqa: E402
    Layer,
    linear,
    linear_kernel,
    row_statistics,
)

from tools.gpu.fake import FakeGpu  # noqa: E402

HALF = torch.bfloat16


@pytest.fixture
def compiled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that are compiled. The cache of compiled kernels is empty at first."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(src.name)

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    for kernel in (linear_kernel, row_statistics_kernel):
        kernel.device_caches.clear()  # other tests of this process may have compiled them
    with FakeGpu(90):
        yield names


def launches(channels: int = 48) -> Callable[[], None]:
    """A function that launches two kernels, each twice."""
    x = torch.zeros(64, channels, dtype=HALF)
    layer = Layer(torch.zeros(16, channels, dtype=HALF), torch.zeros(16, dtype=HALF))

    def run() -> None:
        for _ in range(2):
            row_statistics(x)
            linear(x, layer)

    return run


def test_launches_do_not_compile_kernels_that_were_compiled_ahead(
    compiled: list[str],
) -> None:
    run = launches()
    launch.compile_ahead(run, workers=2)
    assert sorted(compiled) == ["linear_kernel", "row_statistics_kernel"]
    run()
    assert len(compiled) == 2


def test_nothing_is_launched_while_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[bool] = []

    def run(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launched.append(not warmup)

    monkeypatch.setattr(launch.JITFunction, "run", run)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: torch.no_grad())
    with launch.only_compile():
        launches()()
        assert launch.is_only_compiling()
    assert launched == [False] * 4
    launches()()
    assert launched == [False] * 4 + [True] * 4 and not launch.is_only_compiling()


def test_an_error_of_the_compiler_is_raised_by_the_launch(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_kernel = triton.compiler.compile

    def fails(source: Any, **options: Any) -> Any:
        if source.name == "linear_kernel":
            raise RuntimeError("no such instruction")
        return compile_kernel(source, **options)

    monkeypatch.setattr(triton.compiler, "compile", fails)
    from sam2_fast.kernels.layer_norm import row_statistics_kernel
    from sam2_fast.kernels.linear import linear_kernel

    for kernel in (linear_kernel, row_statistics_kernel):
        kernel.device_caches.clear()
    run = launches(80)
    launch.compile_ahead(run, workers=2)
    assert compiled == ["row_statistics_kernel"]
    with pytest.raises(RuntimeError, match="no such instruction"):
        run()
    for kernel in (linear_kernel, row_statistics_kernel):
        kernel.device_caches.clear()


def test_errors_between_launches_are_propagated(compiled: list[str]) -> None:
    def run() -> None:
        launches()()
        raise ValueError("no frame")

    with pytest.raises(ValueError, match="no frame"):
        launch.compile_ahead(run, workers=2)
    assert not launch.is_only_compiling()


def test_the_form_of_the_table_is_chosen_if_it_is_among_the_offered_ones() -> None:
    device = torch.device("meta")
    choices.install(device, {("tile", (1,)): (64, 64), ("tile", (2,)): (7, 7)})
    try:
        forms = ((128, 128), (64, 64))
        assert choices.choose(device, "tile", (1,), forms[0], forms) == (64, 64)
        assert choices.choose(device, "tile", (2,), forms[0], forms) == (128, 128)  # unknown form
        assert choices.choose(device, "tile", (3,), forms[0], forms) == (128, 128)  # unknown key
        with choices.trying({("tile", (3,)): (64, 64)}) as trial:
            assert choices.choose(device, "tile", (3,), forms[0], forms) == (64, 64)
            assert choices.choose(device, "tile", (1,), forms[0], forms) == (64, 64)
        assert trial.choices == {
            ("tile", (3,)): ((64, 64), forms),
            ("tile", (1,)): ((64, 64), forms),
        }
    finally:
        choices.install(device, {})
