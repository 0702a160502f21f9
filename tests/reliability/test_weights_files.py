"""Weights files cost what they contain, run no code and raise CheckpointError only."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sam2_fast.build_sam import build_sam2
from sam2_fast.model import Sam2
from sam2_fast.weights.checkpoint import (
    CheckpointError,
    infer_config,
    load_weights,
    read_state_dict,
)
from tests.reliability.costs import refusal_of
from tests.reliability.faults import (
    HOW_MANY,
    FailingOp,
    InterruptedLine,
    files_of,
    positions_of,
    raises,
)
from tests.video.sessions import SMALL

TABLE = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}, "epoch": 3}


def saved(content: Any = TABLE, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def rewritten(
    data: bytes, change: Callable[[str, bytes], bytes] = lambda name, body: body, *, level: int = 0
) -> bytes:
    """The archive with changed members; level 8: compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", level) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return stream.getvalue()


def with_pickle(program: bytes) -> bytes:
    return rewritten(saved(), lambda n, body: program if n.endswith("data.pkl") else body)


def legacy_of(program: bytes) -> bytes:
    """A file of the older format with another main pickle."""
    data = saved(legacy=True)
    stream = io.BytesIO(data)
    for _ in range(3):
        pickle.load(stream)
    return data[: stream.tell()] + program + pickle.dumps([], 2)


def many_members() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(150_000):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{number:060d}"), b"")
    return stream.getvalue()


def claiming(numel: int) -> bytes:
    """A tensor of more numbers than the file has."""
    program = saved(TABLE["model"]["b"])
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        text = archive.read("archive/data.pkl")
    size = b"K\x04"
    assert text.count(size) == 2
    return with_pickle(text.replace(size, b"J" + struct.pack("<i", numel)))


BYTEARRAY = b"\x80\x02c__builtin__\nbytearray\nq\x00J\x00\x5e\xd0\x7f\x85R."
LAUGHS = (  # a table of 200,000 entries, copied 20,000 times
    b"\x80\x02ccollections\nOrderedDict\nq\x00}q\x01("
    + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(200_000))
    + b"u0]("
    + 20_000 * b"h\x00h\x01\x85R"
    + b"e."
)
ENCODE = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R."
DEEP_KEY = b"\x80\x02})" + 900_000 * b"\x85" + b"Ns."
PADDING = b"\x80\x02" + 9_000_000 * b"N0" + b"."

HOSTILE: dict[str, Callable[[], bytes]] = {
    "bytearray": lambda: BYTEARRAY,
    "bytearray in a zip": lambda: with_pickle(BYTEARRAY),
    "bytearray in the older format": lambda: legacy_of(BYTEARRAY),
    "copied tables": lambda: with_pickle(LAUGHS),
    "copied tables in the older format": lambda: legacy_of(LAUGHS),
    "encoded text": lambda: with_pickle(ENCODE),
    "nested key": lambda: with_pickle(DEEP_KEY),
    "endless": lambda: with_pickle(PADDING),
    "far memo": lambda: with_pickle(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "long text": lambda: with_pickle(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "compressed": lambda: rewritten(
        saved({"a": torch.zeros(150_000_000, dtype=torch.uint8)}), level=8
    ),
    "members": many_members,
    "claimed numbers": lambda: claiming(2**31 - 1),
    "claimed by a little": lambda: claiming(5),
    "claimed in the older format": lambda: saved(legacy=True).replace(
        b"K\x06Nt", b"J\xff\xff\xff\x7fNt"
    ),
    "expanded": lambda: saved({"a": torch.zeros(1).expand(2**31)}),
    "tar": lambda: b"storages" + bytes(92) + b"0000644\0" + bytes(900),
}


@pytest.mark.reliability("F16", "38")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_are_refused_fast_and_in_little_memory(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(HOSTILE[name]())
    outcome = refusal_of(
        "from sam2_fast.weights.checkpoint import read_state_dict", "read_state_dict(path)", path
    )
    assert outcome.startswith("CheckpointError: checkpoint ") and "hostile.pt" in outcome


@pytest.mark.reliability("F15")
@pytest.mark.parametrize("legacy", [True, False])
def test_every_cut_of_a_checkpoint_is_a_checkpoint_error(legacy: bool, tmp_path: Path) -> None:
    data = saved(legacy=legacy)
    path = tmp_path / "cut.pt"
    for stop in range(0, len(data), 1 if legacy else 7):
        path.write_bytes(data[:stop])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            read_state_dict(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_both_formats_keep_views_types_and_other_entries(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(12.0)
    content: dict[str, Any] = {
        "model": {
            "view": base[2:8].reshape(2, 3).t(),
            "shared": base,
            "empty": torch.zeros(0, 3),
            "scalar": torch.tensor(3, dtype=torch.int64),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "parameter": torch.nn.Parameter(torch.ones(2)),
        },
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.999)},
    }
    (tmp_path / "a.pt").write_bytes(saved(content, legacy=legacy))
    state = read_state_dict(tmp_path / "a.pt")
    assert all(torch.equal(state[name], value) for name, value in content["model"].items())


def shared_header() -> bytes:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":'
    header += b'[2],"data_offsets":[0,8]}}'
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.reliability("38")
@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        struct.pack("<Q", 200 << 20) + b"{" * 100,
        struct.pack("<Q", 20_000) + b'{"a":' + b"[" * 20_000,
        shared_header(),
        save({"a": torch.zeros(4)})[:-1],
        save({"a": torch.zeros(4)}) + b"\0",
        BYTEARRAY,
        save({"a": torch.zeros(4)}).replace(b'"F32"', b'"F\\n"'),
    ],
    ids=["byte", "header", "nested", "overlap", "cut", "longer", "pickle", "two lines"],
)
def test_damaged_safetensors_are_checkpoint_errors(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.reliability("38")
@pytest.mark.parametrize("path", ["/dev/zero", "folder.pt"])
def test_devices_and_folders_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="expected a file"):
        read_state_dict(tmp_path / path)


@pytest.mark.reliability("F16")
def test_a_file_cannot_ask_for_a_model_larger_than_itself() -> None:
    state = build_sam2("tiny", device="cpu", seed=0, image_size=64).state_dict()
    more_layers = {**state, "memory_attention.layers.99999999.linear1.weight": torch.zeros(1, 1)}
    with pytest.raises(CheckpointError, match="expected layers"):
        infer_config(more_layers)
    key = "memory_attention.layers.3.linear1.weight"
    with pytest.raises(CheckpointError, match="expected layers"):
        infer_config({**state, key: torch.zeros(9, 256)})
    names = [name for name in state if name.endswith("linear1.weight")]
    empty = {**state, **dict.fromkeys(names, torch.zeros(2**40, 0))}
    with pytest.raises(CheckpointError, match="expected a matrix"):
        infer_config(empty)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copied(model: Sam2) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


FAULTS = {
    "error": FailingOp,
    "interrupt": lambda at=None: InterruptedLine(at, files_of("weights/checkpoint.py")),
}


@pytest.mark.reliability("27", "38", "interrupts")
@pytest.mark.parametrize("most", HOW_MANY)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_load_that_raises_leaves_all_weights_as_they_were(kind: str, most: int) -> None:
    model = Sam2(SMALL)
    before = copied(model)
    state = {name: tensor + 1 for name, tensor in before.items()}
    positions = positions_of(lambda: load_weights(model, state), FAULTS[kind](), most)
    load_weights(model, before)
    for position in positions:
        fault = FAULTS[kind](position)
        assert raises(lambda: load_weights(model, state), fault)
        assert equal(model.state_dict(), before), fault.where
