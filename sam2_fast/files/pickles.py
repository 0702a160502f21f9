"""What a pickle of tensors holds, found out without building any of its objects.

A pickle is a program. Even one that may name only harmless functions can ask for gigabytes, or
claim tensors that its file does not hold, for which torch returns memory with random content. So
the instructions are followed here with stand-ins for all objects, and checked, before torch runs
them.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

INSTRUCTION_BYTES = 64
"""A pickle may have one instruction, or copied entry, for each as many bytes of its limit: 262,144
by default. That of a training checkpoint of the large model has 120,000."""

_ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
}
_TABLES = ("collections OrderedDict", "collections Counter")
_REBUILD = "torch._utils _rebuild_"
_TENSORS = (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3")
_PLAIN_CALLS = ("torch Size", "torch device", "__builtin__ complex")
_COPIES = ("__builtin__ set", "_codecs encode")
_GLOBALS = (*_TABLES, *_TENSORS, *_PLAIN_CALLS, *_COPIES, f"{_REBUILD}parameter")


class CodeError(ValueError):
    """A pickle that asks for anything but tables of tensors and plain values."""


class Storage(NamedTuple):
    """The numbers of tensors: its key in the file, and sizes in bytes."""

    key: str
    item_bytes: int
    total_bytes: int


class Contents(NamedTuple):
    """What a pickle holds. value: a stand-in of the whole; storages: by key."""

    value: Any
    storages: dict[str, Storage]


class _Name(str):
    """The name of a global, as `module name`."""

    __slots__ = ()


class _Table:
    """A stand-in for a dictionary: the number of its entries."""

    def __init__(self, length: int = 0) -> None:
        self.length = length


class _Mark:
    """The start of the arguments of an instruction."""


_MARK = _Mark()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")


def inspect(stream: BinaryIO, max_header_bytes: int) -> Contents:
    """Follow one pickle of `stream`, which is at its start, and afterwards behind its end.

    max_header_bytes: limit of its size, for the number of its instructions.
    Raises CodeError for anything but tables of tensors and plain values, and ValueError for a
    damaged pickle, for one that is too large and for tensors that are larger than their storage.
    """
    machine = _Machine()
    max_instructions = max_header_bytes // INSTRUCTION_BYTES
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if max(count, machine.copied) >= max_instructions:
                raise ValueError(
                    f"the pickle has {max_instructions} instructions or more; raise the limit with "
                    "max_header_bytes="
                )
            machine.run(instruction.name, argument)
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the pickle is damaged ({error!r})") from error
    return Contents(machine.pop(), machine.storages)


class _Machine:
    """The state of a pickle's program: its stack and its memo, with stand-ins for objects.

    copied: the number of entries that calls have copied; tables copy their arguments.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.copied = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[], None]] = {
            "APPEND": lambda: self._extend([self.pop()]),
            "APPENDS": lambda: self._extend(self._pop_to_mark()),
            "SETITEM": lambda: self._set_items(self._pop_last(2)),
            "SETITEMS": lambda: self._set_items(self._pop_to_mark()),
            "TUPLE": lambda: self._push(tuple(self._pop_to_mark())),
            "TUPLE1": lambda: self._push(tuple(self._pop_last(1))),
            "TUPLE2": lambda: self._push(tuple(self._pop_last(2))),
            "TUPLE3": lambda: self._push(tuple(self._pop_last(3))),
            "EMPTY_TUPLE": lambda: self._push(()),
            "EMPTY_LIST": lambda: self._push([]),
            "EMPTY_DICT": lambda: self._push(_Table()),
            "MARK": lambda: self._push(_MARK),
            "BINPERSID": lambda: self._push(self._storage(self.pop())),
            "REDUCE": lambda: self._push(self._called(*self._pop_last(2))),
            "BUILD": self._build,
            "STOP": lambda: None,
        }

    def run(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in _VALUES:
            self._push(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._push(self._memo[argument])
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name == "GLOBAL":
            self._push(_allowed(argument))
        elif name == "PROTO":
            if argument > pickle.HIGHEST_PROTOCOL:
                raise ValueError(f"the pickle has the unknown protocol {argument}")
        elif name in self._steps:
            self._steps[name]()
        else:
            raise CodeError(f"the instruction {name}")

    def pop(self) -> Any:
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_last(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) < count or _MARK in values:
            raise IndexError("too few values")
        del self._stack[-count:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("expected a list")
        self._stack[-1].extend(values)

    def _set_items(self, items: list[Any]) -> None:
        table = self._stack[-1]
        # Other keys may be nested so deeply that hashing them ends the process.
        if not isinstance(table, _Table) or not all(
            isinstance(key, (str, int, float)) for key in items[::2]
        ):
            raise TypeError("expected a table with names or numbers as keys")
        if len(items) % 2:
            raise TypeError("expected a value for each key")
        table.length += len(items) // 2

    def _build(self) -> None:
        state, table = self.pop(), self._stack[-1]
        if not isinstance(state, _Table) or not isinstance(table, _Table):
            raise CodeError("changing the state of an object")
        self.copied += state.length

    def _storage(self, description: Any) -> Storage:
        """The storage of a persistent id: ("storage", type, key, device, number of items)."""
        kind, type_name, key, device, count, *view = description
        if kind != "storage" or view not in ([], [None]) or type(count) is not int or count < 0:
            raise ValueError(f"expected the storage of a tensor, got {str(description)[:80]}")
        if not isinstance(key, str) or not isinstance(device, str):
            raise ValueError("expected a storage with a name and a device")
        item_bytes = 1
        if type_name != "torch.storage UntypedStorage":
            item_bytes = _ITEM_BYTES[type_name.removeprefix("torch ")]
        storage = Storage(key, item_bytes, count * item_bytes)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key} has two sizes")
        return storage

    def _called(self, function: Any, arguments: Any) -> Any:
        """The stand-in for the result of a call."""
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise CodeError("a call of another object than a function")
        if function in _TENSORS:
            return _check_tensor(*arguments)
        if function == f"{_REBUILD}parameter":
            return arguments[0]
        if function in _TABLES:
            sizes = [a.length for a in arguments if isinstance(a, _Table)]
            if len(sizes) != len(arguments):
                raise CodeError(f"a call of {function} with other arguments than tables")
            self.copied += sum(sizes)
            return _Table(sum(sizes))
        if function in _COPIES:
            return self._copied(function, arguments)
        if function not in _PLAIN_CALLS or len(str(arguments)) > 1000:
            raise CodeError(f"a call of {function}")
        return arguments

    def _copied(self, function: _Name, arguments: tuple[Any, ...]) -> Any:
        """The stand-in for bytes and for a set, which copy their argument."""
        source = arguments[0] if arguments else None
        encoding = arguments[1:] in ((), ("latin1",))
        if type(source) is not (str if function == "_codecs encode" else list) or not encoding:
            raise CodeError(f"a call of {function} with other arguments")
        # Other values may be nested so deeply that hashing them ends the process.
        if not all(isinstance(value, (str, int, float)) for value in source):
            raise TypeError("expected a set of names or numbers")
        self.copied += len(source)
        return arguments


def _allowed(name: str) -> _Name:
    module, _, attribute = name.partition(" ")
    if module == "__builtin__":
        module = "builtins"
    is_storage = module == "torch" and attribute in _ITEM_BYTES
    is_dtype = module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)
    is_allowed = name in _GLOBALS or name == "torch.storage UntypedStorage"
    if not (is_storage or is_dtype or is_allowed):
        raise CodeError(f"{module}.{attribute}")
    return _Name(name)


def _check_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *others: Any
) -> tuple[int, ...]:
    """Raise ValueError unless a tensor lies within its storage. Returns its size."""
    if not isinstance(storage, Storage):
        raise CodeError("a tensor without storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int for n in numbers):
        raise ValueError("a tensor has an unusable size")
    item_bytes = storage.item_bytes
    dtype = others[2] if len(others) > 2 else None
    if isinstance(dtype, _Name):
        item_bytes = getattr(torch, dtype.removeprefix("torch ")).itemsize
    if min(numbers) < 0 or max(numbers) >= 2**63:
        raise ValueError("a tensor has an unusable size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count and max(last + 1, count) * item_bytes > storage.total_bytes:
        raise ValueError(
            f"a tensor of size {list(size)} claims more than the {storage.total_bytes} bytes of "
            f"its storage {storage.key}"
        )
    return tuple(size)
