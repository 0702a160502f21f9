"""Verdicts on disk: processes share them, and problems with the files do not affect calls."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from sam2_fast.proving import cache as cache_module
from sam2_fast.proving import case as case_module
from sam2_fast.proving.case import LostDeviceError
from sam2_fast.proving.files import begin, cache_directory
from sam2_fast.proving.gate import Gate, using
from tests.proving.toy import (
    CARD,
    OP,
    Kernel,
    call,
    definition,
    gate_in,
    register,
    register_with_gate,
)

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import os, sys, time
from pathlib import Path
from sam2_fast.proving.gate import using
from tests.proving.toy import Kernel, call, gate_in, register

directory = Path(sys.argv[1])
"""


def start_process(program: str, directory: Path) -> subprocess.Popen[str]:
    """Start Python code in another process, with `directory` as cache."""
    command = [sys.executable, "-c", PRELUDE + program, str(directory)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def file_of(directory: Path) -> Path:
    return directory / "proofs" / f"{CARD.identity}.json"


def fill_cache(directory: Path) -> None:
    with register(Kernel()), using(gate_in(directory)):
        call()


UNUSABLE_FILES = {
    "empty": "",
    "half": None,
    "not an object": "[1, 2]",
    "another format": '{"format": "something else"}',
    "another version": '{"format": "sam2_fast.proofs", "version": 99}',
    "no verdicts": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD}',
    "an invalid verdict": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD, '
    '"verdicts": [{"op": 1}], "choices": []}',
    "an invalid choice": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD, '
    '"verdicts": [], "choices": [{"point": "p", "key": [1.5], "form": "f", "source": "measured"}]}',
    "another card": '{"format": "sam2_fast.proofs", "version": 1, "card": {"name": "other"}, '
    '"verdicts": [], "choices": []}',
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("case", UNUSABLE_FILES)
def test_an_unusable_file_is_set_aside_and_replaced(tmp_path: Path, case: str) -> None:
    fill_cache(tmp_path)
    file = file_of(tmp_path)
    original = json.loads(file.read_text())
    content = UNUSABLE_FILES[case]
    if content is None:
        content = file.read_text()[: file.stat().st_size // 2]
    if isinstance(content, str):
        content = content.replace("CARD", json.dumps(original["card"])).encode()
    file.write_bytes(content)
    kernel = Kernel()
    gate = gate_in(tmp_path)
    with warnings.catch_warnings(), register(kernel), using(gate):
        warnings.simplefilter("error")
        call()
    assert kernel.runs > 1, "the kernel was not proved again"
    assert [v["op"] for v in json.loads(file.read_text())["verdicts"]] == [OP]
    store = gate.cache.store(torch.device("cpu"))
    assert store is not None and store.notes and len(store.set_aside()) == 1
    assert (file.parent / store.set_aside()[0]).read_bytes() == content


@pytest.mark.parametrize("reason", ["the directory is a file", "no home"])
def test_a_process_that_cannot_write_files_warns_once_and_proves_for_itself(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    gate = gate_in(tmp_path / "file")
    if reason == "no home":
        for name in ("SAM2_FAST_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

        def no_home() -> Path:
            raise RuntimeError("could not determine home directory")

        monkeypatch.setattr(Path, "home", no_home)
        gate = Gate(lambda backend, _: backend == "triton", lambda _: CARD)
    kernel = Kernel()
    with register(kernel), using(gate):
        with pytest.warns(RuntimeWarning, match="every process proves them again") as record:
            call()
            call(out=16)
        assert len(record) == 1
        before = kernel.runs
        call()
        assert kernel.runs == before + 1, "this process proved the kernel again"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SAM2_FAST_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/sam2_fast"),
        ({"HOME": "/home/x"}, "/home/x/.cache/sam2_fast"),
    ],
)
def test_environment_variables_determine_the_cache_directory(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SAM2_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


def test_two_processes_that_write_at_once_lose_no_verdict(tmp_path: Path) -> None:
    program = """
kernel = Kernel()
with register(kernel), using(gate_in(directory)):
    for out in {outs}:
        call(out=out)
"""
    ranges = [list(range(10, 22)), list(range(16, 28))]
    processes = [start_process(program.format(outs=outs), tmp_path) for outs in ranges]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    verdicts = json.loads(file_of(tmp_path).read_text())["verdicts"]
    shapes = {v["configuration"] for v in verdicts}
    assert len(verdicts) == len(shapes) == 18
    assert not list(tmp_path.rglob("*.unfinished")) and not list(tmp_path.rglob("*.tmp"))


def test_a_kernel_that_kills_its_process_twice_is_refused(tmp_path: Path) -> None:
    program = """
with register(Kernel(lambda *_: os._exit(3))), using(gate_in(directory)):
    call()
"""
    for _ in range(2):
        process = start_process(program, tmp_path)
        process.communicate(timeout=120)
        assert process.returncode == 3
    kernel = Kernel()
    with (
        register(kernel),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="2 processes died"),
    ):
        call()
    assert kernel.runs == 0
    with register_with_gate(tmp_path, kernel), pytest.warns(RuntimeWarning, match="died"):
        call()
    assert kernel.runs == 0, "the verdict is not in the cache"


def test_a_kernel_that_kills_its_process_once_is_proved_again(tmp_path: Path) -> None:
    process = start_process(
        "with register(Kernel(lambda *_: os._exit(3))), using(gate_in(directory)): call()",
        tmp_path,
    )
    process.communicate(timeout=120)
    kernel = Kernel()
    with register_with_gate(tmp_path, kernel):
        call()
    assert kernel.runs > 1 and not list(tmp_path.rglob("*.unfinished"))


def test_only_processes_that_died_are_counted(tmp_path: Path) -> None:
    first = begin(tmp_path / "mark")
    assert first is not None and first.earlier == 0
    assert begin(tmp_path / "mark") is None
    first.remove()
    second = begin(tmp_path / "mark")
    assert second is not None and second.earlier == 0
    second.leave()
    third = begin(tmp_path / "mark")
    assert third is not None and third.earlier == 1
    third.remove()


def test_an_interrupted_proof_leaves_no_unfinished_file(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        register_with_gate(tmp_path, Kernel(interrupt)),
        pytest.raises(KeyboardInterrupt),
    ):
        call()
    assert not list(tmp_path.rglob("*.unfinished"))
    with register_with_gate(tmp_path, Kernel()):
        call()


def test_a_lost_device_raises_and_is_counted_as_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access_illegally(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(case_module, "is_alive", lambda device: False)
    for _ in range(2):
        with (
            register(Kernel(access_illegally)),
            using(gate_in(tmp_path)),
            pytest.raises(LostDeviceError, match="illegal memory access"),
        ):
            call()
    with (
        register(Kernel()),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="2 processes died"),
    ):
        call()


def test_verdicts_that_another_process_adds_are_read(tmp_path: Path) -> None:
    first = gate_in(tmp_path)
    second = gate_in(tmp_path)
    kernel = Kernel()
    with register(kernel):
        with using(first):
            call(out=16)
        with using(second):
            call(out=32)
        before = kernel.runs
        with using(first):
            call(out=32)
    assert kernel.runs == before + 1


def test_an_error_while_saving_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.Store, "merge", fail)
    with (
        register(Kernel()),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="No space left on device"),
    ):
        (output, _), inputs = call()
    assert torch.equal(output, definition(*inputs)[0])
