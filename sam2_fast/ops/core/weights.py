"""Named weights of ops. A frozen dataclass for each op declares names, shapes and order.

    @dataclass(frozen=True, eq=False)
    class MlpWeights(Weights):
        linear1: Linear = linear("F", "C")
        linear2: Linear = linear("C", "F")

Tensors are accessed by name (`weights.linear1.weight`). Their shapes are checked against each other
when an instance is created, and again after a tensor was written or moved. Custom ops get
`flatten()`, the tensors in the order of their declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor
from torch.utils import _pytree as pytree

from sam2_fast.ops.core import tracing
from sam2_fast.ops.core.layout import Dim, Leaf, Sizes, bind
from sam2_fast.ops.core.native import is_plain
from sam2_fast.ops.core.state import Facts, State

W = TypeVar("W", bound="Weights")
_SPEC = "spec"


@dataclass(frozen=True)
class _Tensor:
    dims: tuple[Dim, ...]
    matrix: bool


@dataclass(frozen=True)
class _Group:
    kind: type[Weights]
    symbols: tuple[tuple[str, Dim], ...]


@dataclass(frozen=True)
class _Sequence:
    groups: tuple[_Group, ...]


@dataclass(frozen=True)
class _Repeated:
    group: _Group


@dataclass(frozen=True)
class _Optional:
    group: _Group


def tensor(*dims: str | int, matrix: bool = False) -> Any:
    """Declare a tensor of this shape. matrix: matrix products use it, in the compute dtype."""
    return field(metadata={_SPEC: _Tensor(tuple(map(Dim.of, dims)), matrix)})


def group(kind: type[Weights], **symbols: str | int) -> Any:
    """Declare nested weights. symbols: the symbols of `kind`, in those of the outer class."""
    return field(metadata={_SPEC: _group(kind, symbols)})


def optional(kind: type[Weights], **symbols: str | int) -> Any:
    """Declare nested weights that may be None. Must be the last field."""
    return field(default=None, metadata={_SPEC: _Optional(_group(kind, symbols))})


def repeated(kind: type[Weights], **symbols: str | int) -> Any:
    """Declare a tuple of one or more groups with the same shapes."""
    return field(metadata={_SPEC: _Repeated(_group(kind, symbols))})


def sequence(kind: type[Weights], *symbols: dict[str, str | int]) -> Any:
    """Declare a tuple of groups, one for each of `symbols`."""
    return field(metadata={_SPEC: _Sequence(tuple(_group(kind, s) for s in symbols))})


def linear(rows: str | int, columns: str | int) -> Any:
    """Declare a `Linear` of `rows` outputs and `columns` inputs."""
    return group(Linear, O=rows, I=columns)


def norm(channels: str | int) -> Any:
    """Declare a `Norm` over this many channels."""
    return group(Norm, C=channels)


def _group(kind: type[Weights], symbols: dict[str, str | int]) -> _Group:
    return _Group(kind, tuple((name, Dim.of(dim)) for name, dim in symbols.items()))


@dataclass(frozen=True, eq=False)
class Weights:
    """Base of named weights. Fields are declared by `tensor`, `linear`, `norm`, `group`, ...

    Creating an instance raises ValueError for the first tensor with a shape that does not fit.
    """

    root: ClassVar[bool] = False
    """Whether the class is an argument of an op. Its instances check themselves and their parts."""

    def __init_subclass__(cls, root: bool = False) -> None:
        cls.root = root
        pytree.register_pytree_node(
            cls,
            lambda weights: (weights.flatten(), (_count(weights), weights.state is not None)),
            lambda tensors, context: _assembled(cls, context[0], tensors, checked=context[1]),
        )

    def __post_init__(self) -> None:
        # a recorder would record the check as part of the model
        if self.root and tracing.recording_reason() is None:
            self.check()
            object.__setattr__(self, "_state", State(self.flatten(), self.check))

    def check(self) -> Sizes:
        """The size of each symbol. Raises ValueError for shapes that do not fit."""
        return bind(self.leaves(), [tuple(x.shape) for x in self.flatten()])

    @property
    def state(self) -> State | None:
        """The state of the tensors, with values derived from them, or None.

        Parts of other weights do not have one, and weights created in a recording do not either.
        """
        state: State | None = self.__dict__.get("_state")
        return state

    @property
    def tensors(self) -> list[Tensor]:
        """As `flatten()`; the list must not be changed."""
        state = self.state
        return self.flatten() if state is None else state.tensors

    def facts(self) -> Facts:
        """Properties of the current tensors that backends check."""
        state = self.state
        values: dict[object, Any] = {} if state is None else state.values()
        if Facts not in values:
            tensors = self.tensors
            values[Facts] = Facts(
                is_plain(*tensors),
                frozenset(type(x).__name__ for x in tensors),
                frozenset(x.device for x in tensors),
                frozenset(x.dtype for x in tensors),
                frozenset(x.dtype for x in self._matrices()),
            )
        return cast(Facts, values[Facts])

    def flatten(self) -> list[Tensor]:
        """All tensors in the order of their declaration."""
        tensors: list[Tensor] = []
        for name, _ in _specs(type(self)):
            _collect(getattr(self, name), tensors)
        return tensors

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor), such as ("layers[1].self_q.weight", ...)."""
        return zip((leaf.name for leaf in self.leaves()), self.flatten(), strict=True)

    def leaves(self) -> tuple[Leaf, ...]:
        """Name, shape in symbols and kind of every tensor."""
        return layout(type(self), _count(self))

    @property
    def first_matrix(self) -> Tensor:
        """The matrix that sets the compute dtype without autocast."""
        return next(self._matrices())

    def _matrices(self) -> Iterator[Tensor]:
        pairs = zip(self.leaves(), self.tensors, strict=True)
        return (x for leaf, x in pairs if leaf.matrix)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles start without the values derived from the tensors."""
        return _assembled, (type(self), _count(self), self.flatten(), self.state is not None)

    def mapped(self: W, change: Callable[[Leaf, Tensor], Tensor]) -> W:
        """The weights with `change` applied to every tensor. It must not change shapes."""
        pairs = zip(self.leaves(), self.flatten(), strict=True)
        return _assembled(type(self), _count(self), [change(*pair) for pair in pairs])

    def to(self: W, *arguments: Any) -> W:
        """`Tensor.to` of every tensor."""
        return self.mapped(lambda _, x: x.to(*arguments))

    def converted(self: W, change: Callable[[Leaf, Tensor], Tensor]) -> W:
        """As `mapped`, for a layout of a backend: shapes may change, nothing is checked."""
        pairs = zip(self.leaves(), self.flatten(), strict=True)
        tensors = [change(*pair) for pair in pairs]
        return _assembled(type(self), _count(self), tensors, checked=False)

    def with_tensors(self: W, tensors: Mapping[str, Tensor]) -> W:
        """The weights with tensors replaced by name, as in `named`. KeyError: unknown names."""
        unknown = set(tensors) - {leaf.name for leaf in self.leaves()}
        if unknown:
            raise KeyError(f"weights have no {', '.join(sorted(unknown))}")
        return self.mapped(lambda leaf, x: tensors.get(leaf.name, x))

    @classmethod
    def unflatten(cls: type[W], tensors: Sequence[Tensor]) -> W:
        """From `flatten()`. Raises ValueError if no instance has this number of tensors."""
        return _assembled(cls, _count_of(cls, len(tensors)), tensors)

    @classmethod
    def build(
        cls: type[W], make: Callable[[Leaf, tuple[int, ...]], Tensor], count: int = 1, **sizes: int
    ) -> W:
        """An instance for tests and benchmarks: `make` gets each tensor's leaf and shape.

        count: length of the repeated field; or 1 with, 0 without the optional weights.
        sizes: the size of each symbol.
        """
        leaves = layout(cls, count)
        tensors = [make(leaf, tuple(dim.value(sizes) for dim in leaf.dims)) for leaf in leaves]
        return _assembled(cls, count, tensors)


@dataclass(frozen=True, eq=False)
class Linear(Weights):
    """A linear layer: x @ weight.T + bias."""

    weight: Tensor = tensor("O", "I", matrix=True)
    bias: Tensor = tensor("O")


@dataclass(frozen=True, eq=False)
class Norm(Weights):
    """Scale and shift of a layer norm."""

    weight: Tensor = tensor("C")
    bias: Tensor = tensor("C")


_SPECS: dict[type[Weights], tuple[tuple[str, Any], ...]] = {}
_LAYOUTS: dict[tuple[type[Weights], int], tuple[Leaf, ...]] = {}


def _specs(kind: type[Weights]) -> tuple[tuple[str, Any], ...]:
    """Names and declarations of the fields of a class."""
    if kind not in _SPECS:
        _SPECS[kind] = tuple((f.name, f.metadata[_SPEC]) for f in fields(kind))
    return _SPECS[kind]


def layout(kind: type[Weights], count: int = 1) -> tuple[Leaf, ...]:
    """Every tensor of a class of weights in order.

    count: number of groups in its repeated or optional field.
    """
    if (kind, count) not in _LAYOUTS:
        leaves: list[Leaf] = []
        for name, spec in _specs(kind):
            if isinstance(spec, _Tensor):
                leaves.append(Leaf(name, spec.dims, spec.matrix))
            for group_name, inner in _groups(name, spec, count):
                leaves += _leaves_of(group_name, inner)
        _LAYOUTS[kind, count] = tuple(leaves)
    return _LAYOUTS[kind, count]


def _groups(name: str, spec: object, count: int) -> list[tuple[str, _Group]]:
    """The groups of a field, with their names."""
    if isinstance(spec, _Group):
        return [(name, spec)]
    if isinstance(spec, _Optional):
        return [(name, spec.group)] * count
    if isinstance(spec, _Sequence):
        return [(f"{name}[{i}]", inner) for i, inner in enumerate(spec.groups)]
    if isinstance(spec, _Repeated):
        return [(f"{name}[{i}]", spec.group) for i in range(count)]
    return []


def _leaves_of(name: str, inner: _Group) -> list[Leaf]:
    symbols = dict(inner.symbols)
    return [
        Leaf(
            f"{name}.{leaf.name}",
            tuple(dim.substituted(symbols) for dim in leaf.dims),
            leaf.matrix,
        )
        for leaf in layout(inner.kind)
    ]


def _count(weights: Weights) -> int:
    """Number of groups in the repeated or optional field of an instance; 1 without such a field."""
    for name, spec in _specs(type(weights)):
        if isinstance(spec, _Repeated):
            return len(getattr(weights, name))
        if isinstance(spec, _Optional):
            return int(getattr(weights, name) is not None)
    return 1


def _count_of(kind: type[Weights], tensors: int) -> int:
    """As `_count`, by the number of tensors."""
    base = len(layout(kind, 0))
    per_group = len(layout(kind, 1)) - base
    count = (tensors - base) // per_group if per_group else 1
    is_optional = any(isinstance(spec, _Optional) for _, spec in _specs(kind))
    least, most = (0, 1) if is_optional else (1, tensors)
    if not least <= count <= most or len(layout(kind, count)) != tensors:
        more = f" and {per_group} for each repeated or optional part" if per_group else ""
        raise ValueError(
            f"weights: expected {base} tensors{more} for {kind.__name__}, got {tensors}"
        )
    return count


def _assembled(kind: type[W], count: int, tensors: Iterable[Tensor], checked: bool = True) -> W:
    """An instance from tensors in the order of `layout`; consumes as many as it needs."""
    tensors = iter(tensors)
    values: dict[str, Any] = {}
    for name, spec in _specs(kind):
        if isinstance(spec, _Tensor):
            values[name] = next(tensors)
            continue
        groups = _groups(name, spec, count)
        parts = [_assembled(inner.kind, 1, tensors, checked) for _, inner in groups]
        if isinstance(spec, _Group):
            values[name] = parts[0]
        elif isinstance(spec, _Optional):
            values[name] = parts[0] if parts else None
        else:
            values[name] = tuple(parts)
    if checked:
        return kind(**values)
    unchecked = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(unchecked, name, value)
    return unchecked


def _collect(value: object, tensors: list[Tensor]) -> None:
    if isinstance(value, Weights):
        tensors += value.flatten()
    elif isinstance(value, tuple):
        for part in value:
            _collect(part, tensors)
    elif value is not None:
        tensors.append(cast(Tensor, value))
