"""Kernels are compiled several at once before they are launched, and choices between forms are made
in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from sam2_fast.kernels import choices, launch  # noqa: E402
from sam2_fast.kernels.linear import Layer, linear, row_statistics  # noqa: E402

from tools.gpu.fake import FakeGpu  # noqa: E402

HALF = torch.bfloat16


@pytest.fixture
def compiled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that are compiled, in a cache of their own."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names: list[str] = []

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(src.name)

    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    with FakeGpu(90):
        yield names


def work(channels: int = 48) -> Callable[[], None]:
    """Something that launches two kernels, each twice."""
    x = torch.zeros(64, channels, dtype=HALF)
    layer = Layer(torch.zeros(16, channels, dtype=HALF), torch.zeros(16, dtype=HALF))

    def run() -> None:
        for _ in range(2):
            row_statistics(x)
            linear(x, layer)

    return run


def test_kernels_are_compiled_once_and_found_by_the_launch(compiled: list[str]) -> None:
    run = work()
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
        work()()
        assert launch.is_only_compiling()
    assert launched == [False] * 4
    work()()
    assert launched == [False] * 4 + [True] * 4 and not launch.is_only_compiling()


def test_a_kernel_that_does_not_compile_is_left_to_its_launch(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = triton.compiler.compile

    def fails(source: Any, **options: Any) -> Any:
        if source.name == "linear_kernel":
            raise RuntimeError("no such instruction")
        return plain(source, **options)

    monkeypatch.setattr(triton.compiler, "compile", fails)
    from sam2_fast.kernels.layer_norm import row_statistics_kernel
    from sam2_fast.kernels.linear import linear_kernel

    for kernel in (linear_kernel, row_statistics_kernel):
        kernel.device_caches.clear()
    run = work(80)
    launch.compile_ahead(run, workers=2)
    assert compiled == ["row_statistics_kernel"]
    with pytest.raises(RuntimeError, match="no such instruction"):
        run()
    for kernel in (linear_kernel, row_statistics_kernel):
        kernel.device_caches.clear()


def test_what_raises_between_launches_passes_through(compiled: list[str]) -> None:
    def run() -> None:
        work()()
        raise ValueError("no frame")

    with pytest.raises(ValueError, match="no frame"):
        launch.compile_ahead(run, workers=2)
    assert not launch.is_only_compiling()


def test_a_form_of_the_table_is_taken_where_it_is_one_of_the_choice() -> None:
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
