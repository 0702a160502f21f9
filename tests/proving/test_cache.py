"""Verdicts on disk: shared by processes, never in the way of a call."""

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
from tests.proving.toy import CARD, OP, Kernel, call, definition, gate_in, proving, registered

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import os, sys, time
from pathlib import Path
from sam2_fast.proving.gate import using
from tests.proving.toy import Kernel, call, gate_in, registered

directory = Path(sys.argv[1])
"""


def process(program: str, directory: Path) -> subprocess.Popen[str]:
    """Python code in a process of its own, with `directory` as cache."""
    command = [sys.executable, "-c", PRELUDE + program, str(directory)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def file_of(directory: Path) -> Path:
    return directory / "proofs" / f"{CARD.identity}.json"


def filled(directory: Path) -> None:
    with registered(Kernel()), using(gate_in(directory)):
        call()


BROKEN = {
    "empty": "",
    "half": None,
    "no object": "[1, 2]",
    "another format": '{"format": "something else"}',
    "another version": '{"format": "sam2_fast.proofs", "version": 99}',
    "no verdicts": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD}',
    "a strange verdict": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD, '
    '"verdicts": [{"op": 1}], "choices": []}',
    "a strange choice": '{"format": "sam2_fast.proofs", "version": 1, "card": CARD, '
    '"verdicts": [], "choices": [{"point": "p", "key": [1.5], "form": "f", "source": "measured"}]}',
    "another card": '{"format": "sam2_fast.proofs", "version": 1, "card": {"name": "other"}, '
    '"verdicts": [], "choices": []}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_used_is_set_aside_and_replaced(tmp_path: Path, case: str) -> None:
    filled(tmp_path)
    file = file_of(tmp_path)
    good = json.loads(file.read_text())
    content = BROKEN[case]
    if content is None:
        content = file.read_text()[: file.stat().st_size // 2]
    if isinstance(content, str):
        content = content.replace("CARD", json.dumps(good["card"])).encode()
    file.write_bytes(content)
    kernel, gate = Kernel(), gate_in(tmp_path)
    with warnings.catch_warnings(), registered(kernel), using(gate):
        warnings.simplefilter("error")
        call()
    assert kernel.runs > 1, "it was proved again"
    assert [v["op"] for v in json.loads(file.read_text())["verdicts"]] == [OP]
    store = gate.cache.store(torch.device("cpu"))
    assert store is not None and store.notes and len(store.set_aside()) == 1
    assert (file.parent / store.set_aside()[0]).read_bytes() == content, "nothing is lost"


@pytest.mark.parametrize("how", ["a file in the way", "no home"])
def test_without_a_place_for_files_each_process_proves(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    gate = gate_in(tmp_path / "file")
    if how == "no home":
        for name in ("SAM2_FAST_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)

        def homeless() -> Path:
            raise RuntimeError("could not determine home directory")

        monkeypatch.setattr(Path, "home", homeless)
        gate = Gate(lambda backend, _: backend == "triton", lambda _: CARD)
    kernel = Kernel()
    with registered(kernel), using(gate):
        with pytest.warns(RuntimeWarning, match="every process proves them again") as seen:
            call()
            call(out=16)
        assert len(seen) == 1
        before = kernel.runs
        call()
        assert kernel.runs == before + 1, "what was proved is known in this process"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SAM2_FAST_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/sam2_fast"),
        ({"HOME": "/home/x"}, "/home/x/.cache/sam2_fast"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SAM2_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    program = """
kernel = Kernel()
with registered(kernel), using(gate_in(directory)):
    for out in {outs}:
        call(out=out)
"""
    outs = [list(range(10, 22)), list(range(16, 28))]
    running = [process(program.format(outs=mine), tmp_path) for mine in outs]
    for one in running:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
    found = json.loads(file_of(tmp_path).read_text())["verdicts"]
    shapes = {v["configuration"] for v in found}
    assert len(found) == len(shapes) == 18
    assert not list(tmp_path.rglob("*.unfinished")) and not list(tmp_path.rglob("*.tmp"))


def test_a_kernel_that_kills_its_process_twice_is_refused(tmp_path: Path) -> None:
    dies = """
with registered(Kernel(lambda *_: os._exit(3))), using(gate_in(directory)):
    call()
"""
    for _ in range(2):
        one = process(dies, tmp_path)
        one.communicate(timeout=120)
        assert one.returncode == 3
    kernel = Kernel()
    with (
        registered(kernel),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="2 processes died"),
    ):
        call()
    assert kernel.runs == 0
    with proving(tmp_path, kernel), pytest.warns(RuntimeWarning, match="died"):
        call()
    assert kernel.runs == 0, "the verdict is kept"


def test_one_death_is_forgiven(tmp_path: Path) -> None:
    one = process(
        "with registered(Kernel(lambda *_: os._exit(3))), using(gate_in(directory)): call()",
        tmp_path,
    )
    one.communicate(timeout=120)
    kernel = Kernel()
    with proving(tmp_path, kernel):
        call()
    assert kernel.runs > 1 and not list(tmp_path.rglob("*.unfinished"))


def test_a_live_process_is_no_dead_one(tmp_path: Path) -> None:
    mark = begin(tmp_path / "mark")
    assert mark is not None and mark.earlier == 0
    assert begin(tmp_path / "mark") is None
    mark.remove()
    again = begin(tmp_path / "mark")
    assert again is not None and again.earlier == 0
    again.leave()
    third = begin(tmp_path / "mark")
    assert third is not None and third.earlier == 1
    third.remove()


def test_an_interruption_leaves_no_mark(tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with (
        proving(tmp_path, Kernel(interrupted)),
        pytest.raises(KeyboardInterrupt),
    ):
        call()
    assert not list(tmp_path.rglob("*.unfinished"))
    with proving(tmp_path, Kernel()):
        call()


def test_a_lost_device_is_raised_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def illegal(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(case_module, "is_alive", lambda device: False)
    for _ in range(2):
        with (
            registered(Kernel(illegal)),
            using(gate_in(tmp_path)),
            pytest.raises(LostDeviceError, match="illegal memory access"),
        ):
            call()
    with (
        registered(Kernel()),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="2 processes died"),
    ):
        call()


def test_a_reader_sees_what_another_process_adds(tmp_path: Path) -> None:
    first, second = gate_in(tmp_path), gate_in(tmp_path)
    kernel = Kernel()
    with registered(kernel):
        with using(first):
            call(out=16)
        with using(second):
            call(out=32)
        before = kernel.runs
        with using(first):
            call(out=32)
    assert kernel.runs == before + 1


def test_errors_while_saving_do_not_reach_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.Store, "merge", full)
    with (
        registered(Kernel()),
        using(gate_in(tmp_path)),
        pytest.warns(RuntimeWarning, match="No space left on device"),
    ):
        (found, _), arguments = call()
    assert torch.equal(found, definition(*arguments)[0])
