"""Mutations of files: of bytes, and light ones that keep a format's own checks satisfied."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
BROKEN = (
    *(ValueError, LookupError, RuntimeError, OverflowError, EOFError),
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError),
)
"""Errors of a mutation if an earlier one has destroyed the structure that it changes."""

_NUMBERS = (0, 1, 2, 7, 8, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, 1e308, 10**400, 2**31, 2**63, "", "a", "../../x", "\0"),
    "two\nlines",
    *([], {}, [[]], [None], {"a": 1}, "NaN", [0] * 5, float("nan"), float("inf")),
)
_PNG = b"\x89PNG\r\n\x1a\n"


def of_bytes(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """One to four changes of bytes: flips, numbers, cuts, repeats, and parts of other seeds."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(body):
            body[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(body):
            body[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice(_NUMBERS) & 0xFFFFFFFF
            body[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif kind == 3:
            del body[at : at + rng.randint(1, 32)]
        elif kind == 4:
            body[at:at] = body[at : at + rng.randint(1, 64)]
        elif kind == 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            body[at : at + 16] = other[start : start + rng.randint(1, 64)]
        elif rng.random() < 0.3:
            del body[at:]
    return bytes(body)


def of_json(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A changed value, key or length at a random position of the document."""
    if rng.random() < 0.1:
        return of_bytes(rng, data, seeds)
    document = json.loads(data)
    for _ in range(rng.randint(1, 2)):
        document = _changed(rng, document, 0)
    return json.dumps(document).encode()


def _changed(rng: random.Random, value: Any, depth: int) -> Any:
    if rng.random() < (0.05 if depth < 2 else 0.3):
        return rng.choice(_VALUES)
    if isinstance(value, dict) and value:
        key = rng.choice([*value])
        action = rng.randrange(8)
        if action == 0:
            return {k: v for k, v in value.items() if k != key}
        if action == 1:
            return {**value, rng.choice(["a", "id", "", "two\nlines"]): rng.choice(_VALUES)}
        return {**value, key: _changed(rng, value[key], depth + 1)}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        action = rng.randrange(8)
        if action == 0:
            return value[:at]
        if action == 1:
            return value + [value[at]] * rng.choice((1, 100))
        return [*value[:at], _changed(rng, value[at], depth + 1), *value[at + 1 :]]
    if isinstance(value, str) and value:
        return of_bytes(rng, value.encode(), [b"0123"]).decode("latin1")
    if isinstance(value, int):
        return rng.choice((value + 1, -value, value * 2, float(value), str(value)))
    return rng.choice(_VALUES)


def of_archive(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A changed member of a valid archive, often the pickle; or changed bytes."""
    if rng.random() < 0.3:
        return of_bytes(rng, data, seeds)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([*members])
    if rng.random() < 0.7:
        name = next((n for n in members if n.endswith("data.pkl")), name)
    members[name] = of_bytes(rng, members[name], [members[name]])
    stream = io.BytesIO()
    level = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", level) as archive:
        for key, body in members.items():
            archive.writestr(key, body)
    return stream.getvalue()


def of_safetensors(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """A changed header with its right length; or changed bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or 8 + length > len(data):
        return of_bytes(rng, data, seeds)
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    session = metadata.get("session") if isinstance(metadata, dict) else None
    if isinstance(session, str) and rng.random() < 0.7:
        header["__metadata__"]["session"] = of_json(rng, session.encode(), seeds).decode("latin1")
        text = json.dumps(header).encode()
    else:
        text = of_json(rng, json.dumps(header).encode(), seeds)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def of_picture(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Changed chunks of a PNG with right check sums; changed bytes of other pictures."""
    if not data.startswith(_PNG) or rng.random() < 0.3:
        return of_bytes(rng, data, seeds)
    chunks, at = [], len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return of_bytes(rng, data, seeds)
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    action = rng.randrange(4)
    if action == 0:
        del chunks[number]
    elif action == 1:
        chunks.insert(number, chunks[rng.randrange(len(chunks))])
    else:
        chunks[number] = (kind, of_bytes(rng, body, [body]))
    return _PNG + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )


def of_lines(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    """Changed lines: repeated, dropped, from another seed, or with changed bytes."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    action = rng.randrange(6)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(at, rng.choice(lines))
    elif action == 2:
        lines.insert(at, rng.choice(rng.choice(seeds).split(b"\n")))
    else:
        lines[at] = of_bytes(rng, lines[at], [lines[at]])
    return b"\n".join(lines)
