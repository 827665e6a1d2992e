"""Mapping of parameter names and layouts between this package and other libraries: one table, used in both directions.

A table has a row for each of our parameters. Layers that are stacked here are one by one there; kernels that are one
here may be several there; what is one here may be copied into every layer there. Nothing is computed: numbers are
moved, so the way there and back is the identity, bit for bit.
"""

import collections
import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from dit_video.weights.adapters import IN_FLOATS, foreign

Shape = tuple[int, ...]

# Types all of whose values float32 has.
FLOATS = (
    *(np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)),
    *(np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)),
    *(np.dtype(ml_dtypes.float8_e4m3fnuz), np.dtype(ml_dtypes.float8_e5m2fnuz)),
)
_SHOWN = 20
LAYER = "{layer}"
# Where layers of two kinds, which are numbered apart here, take turns in one list.
EVEN, ODD = "{2 layer}", "{2 layer + 1}"


class Dialect(enum.Enum):
    """Naming convention of tensors: diffusers, official code, or another library."""

    OFFICIAL = "official"  # of the code that was published with the paper
    DIFFUSERS = "diffusers"
    TRANSFORMERS = "transformers"
    TORCH = "torch"  # of the module files of this package, export/torch/files


class NamesMismatch(ValueError):
    """Tensors do not match the table; the message names them."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, read lazily."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


Source = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Row of a name table: one of our parameters, and the corresponding tensors of other libraries.

    Attributes:
        ours: our name.
        our_shape: without the axis of layers.
        theirs: the name in each dialect, with LAYER, EVEN or ODD for the number of a layer; several names are parts
            along the first axis of what another dialect has in one.
        shape: theirs, of one layer, parts taken together.
        pieces: dimensions that theirs is cut into before its axes are ordered, where an axis of theirs is several here;
            None: as `shape`.
        order: the axes of `pieces`, in the order in which ours has them.
        num_layers: how many `{layer}` counts.
        first_layer: what it counts from.
        stacked: ours has a leading axis of layers; else `{layer}` in a name means copies of the same numbers.
        swapped: dialects that have the halves of the first axis of `shape` the other way round.
    """

    ours: str
    our_shape: Shape
    theirs: Mapping[Dialect, tuple[str, ...]]
    shape: Shape
    order: tuple[int, ...]
    pieces: Shape | None = None
    num_layers: int = 1
    first_layer: int = 0
    stacked: bool = False
    swapped: frozenset[Dialect] = frozenset()

    def places(self, dialect: Dialect) -> list[tuple[str, ...]]:
        """Tensor names of all parts, for each layer or copy."""
        names = self.theirs[dialect]
        if not any(number in names[0] for number in (LAYER, EVEN, ODD)):
            return [names]
        layers = range(self.first_layer, self.first_layer + self.num_layers)
        return [tuple(_in_layer(name, layer) for name in names) for layer in layers]

    def part_shape(self, dialect: Dialect) -> Shape:
        return (self.shape[0] // len(self.theirs[dialect]), *self.shape[1:])

    def from_theirs(self, whole: np.ndarray, dialect: Dialect) -> np.ndarray:
        """Converts one layer, all its parts together, from their layout to ours."""
        whole = self._with_halves_of(dialect, whole)
        return whole.reshape(self.pieces or self.shape).transpose(self.order).reshape(self.our_shape)

    def to_theirs(self, layer: np.ndarray, dialect: Dialect) -> list[np.ndarray]:
        """Converts one layer from our layout to the parts in theirs."""
        pieces = self.pieces or self.shape
        ordered = layer.reshape([pieces[axis] for axis in self.order])
        whole = ordered.transpose(np.argsort(self.order)).reshape(self.shape)
        return np.split(self._with_halves_of(dialect, whole), len(self.theirs[dialect]))

    def _with_halves_of(self, dialect: Dialect, whole: np.ndarray) -> np.ndarray:
        return np.roll(whole, len(whole) // 2, axis=0) if dialect in self.swapped else whole


def _in_layer(name: str, layer: int) -> str:
    for number, value in ((LAYER, layer), (EVEN, 2 * layer), (ODD, 2 * layer + 1)):
        name = name.replace(number, str(value))
    return name


def vector(
    ours: str,
    shape: Shape,
    theirs: Mapping[Dialect, tuple[str, ...]],
    *,
    num_layers: int = 1,
    stacked: bool = False,
) -> Row:
    """Row of a bias or scale, which elsewhere is a vector."""
    return Row(
        ours=ours,
        our_shape=shape,
        theirs=theirs,
        shape=(math.prod(shape),),
        order=(0,),
        num_layers=num_layers,
        stacked=stacked,
    )


def linear(
    ours: str,
    features_in: Shape,
    features_out: Shape,
    theirs: Mapping[Dialect, tuple[str, ...]],
    *,
    num_layers: int = 1,
    stacked: bool = False,
    use_bias: bool = True,
) -> tuple[Row, ...]:
    """Rows of a linear layer: our `kernel` [*in, *out], `bias` [*out]; elsewhere `weight` [out, in], `bias` [out].

    The names are those of the layers.
    """

    def named(end: str) -> dict[Dialect, tuple[str, ...]]:
        return {dialect: tuple(f"{name}.{end}" for name in names) for dialect, names in theirs.items()}

    kernel = Row(
        ours=f"{ours}.kernel",
        our_shape=(*features_in, *features_out),
        theirs=named("weight"),
        shape=(math.prod(features_out), math.prod(features_in)),
        order=(1, 0),
        num_layers=num_layers,
        stacked=stacked,
    )
    if not use_bias:
        return (kernel,)
    bias = vector(f"{ours}.bias", features_out, named("bias"), num_layers=num_layers, stacked=stacked)
    return kernel, bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Name table of a network.

    Attributes:
        rows: one for each of our parameters.
        constants: tensors that a dialect stores and that follow from the network's configuration.
        unused: tensors that some files of a dialect have, and that no network computes with.
        former: names that tensors have in older files of a dialect, and what they are called now.
    """

    rows: tuple[Row, ...]
    constants: Mapping[Dialect, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    unused: Mapping[Dialect, frozenset[str]] = dataclasses.field(default_factory=dict)
    former: Mapping[Dialect, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def expected(self, dialect: Dialect) -> dict[str, Shape]:
        """Every tensor of a dialect with its expected shape."""
        shapes: dict[str, Shape] = {}
        for row in self.rows:
            shapes |= {name: row.part_shape(dialect) for names in row.places(dialect) for name in names}
        return shapes | {name: value.shape for name, value in self.constants.get(dialect, {}).items()}

    def renamed(self, dialect: Dialect, source: Source) -> Source:
        """The tensors of a file by their current names."""
        former = self.former.get(dialect, {})
        now = {name: former[name] for name in source if name in former and former[name] not in source}
        return {now.get(name, name): stored for name, stored in source.items()} if now else source


def check(table: Table, dialect: Dialect, source: Source) -> tuple[np.dtype, ...]:
    """Checks the names, shapes and types of all tensors against the table, before any is read.

    Returns:
        their types, that of most tensors first.

    Raises:
        NamesMismatch: lists tensors that are missing, surplus, of another shape, or of a type that float32 does not
            hold; or says that they are an adapter's, or quantised.
    """
    source = table.renamed(dialect, source)
    expected = table.expected(dialect)
    missing, surplus = unmatched(table, dialect, source)
    if surplus and (kind := foreign(surplus)) is not None:
        raise NamesMismatch(kind)
    wrong = [f"missing {name} {list(expected[name])}" for name in missing]
    wrong += [f"surplus {name} {list(source[name].shape)}" for name in surplus]
    for name in (name for name in expected if name in source):
        stored = source[name]
        if stored.shape != expected[name]:
            wrong.append(f"{name} is {list(stored.shape)}, the network has {list(expected[name])}")
        if stored.dtype not in FLOATS:
            wrong.append(f"{name} is {stored.dtype}; {_why_not(stored.dtype)}")
    if wrong:
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        lines = "\n".join(f"  {line}" for line in [*wrong[:_SHOWN], *more])
        raise NamesMismatch(f"not the {dialect.value} tensors of this network:\n{lines}")
    types = collections.Counter(source[name].dtype for name in expected)
    return tuple(dtype for dtype, _ in types.most_common())


def unmatched(table: Table, dialect: Dialect, source: Source) -> tuple[list[str], list[str]]:
    """Names that a dialect has and a source lacks, and names that a source has and no network of this table uses."""
    source = table.renamed(dialect, source)
    expected = table.expected(dialect)
    known = expected.keys() | table.unused.get(dialect, frozenset())
    return [name for name in expected if name not in source], [name for name in source if name not in known]


def copies_differ(table: Table, dialect: Dialect, source: Source) -> bool:
    """Whether a tensor that every layer of a dialect has, and the network once, is another in another layer.

    Tensors that are missing, or of another shape, are for `check` to name.
    """
    for row in table.rows:
        if row.stacked:
            continue
        first, *others = row.places(dialect)
        names = [name for place in (first, *others) for name in place]
        if not others or any(name not in source or source[name].shape != row.part_shape(dialect) for name in names):
            continue
        whole = [source[name].read() for name in first]
        if any(not _equal(source[name].read(), part) for place in others for name, part in zip(place, whole)):
            return True
    return False


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same numbers, in whatever types, or none in the same places."""
    return np.array_equal(one.astype(np.float32), other.astype(np.float32), equal_nan=True)


def _why_not(dtype: np.dtype) -> str:
    if dtype == np.float64:
        return "float32 has not all of its digits; save the weights in float32"
    return f"read are float32, float16, bfloat16 and float8; take {IN_FLOATS}"


def read(table: Table, dialect: Dialect, source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """Reads our parameters in float32, one at a time; memory holds one of them and one tensor of the source.

    `source` has passed `check`.

    Raises:
        NamesMismatch: a constant has another value, or copies differ.
    """
    sizes = {row.ours: row.num_layers for row in table.rows if row.stacked}
    whole = np.empty(0)
    for name, layer, value in read_slices(table, dialect, source):
        if layer is None:
            yield name, value.astype(np.float32)
            continue
        if layer == 0:
            whole = np.empty((sizes[name], *value.shape), np.float32)
        whole[layer] = value
        if layer + 1 == sizes[name]:
            yield name, whole


def read_slices(table: Table, dialect: Dialect, source: Source) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Reads our parameters in their stored type, stacked ones a layer at a time with its number.

    Memory holds a slice and, where it has several parts, one of these. `source` has passed `check`.

    Raises:
        NamesMismatch: a constant has another value, or copies differ.
    """
    source = table.renamed(dialect, source)
    for name, value in table.constants.get(dialect, {}).items():
        stored = source[name].read().astype(np.float32)
        if not np.allclose(stored, value, atol=_rounding(source[name].dtype)):
            raise NamesMismatch(f"{name}: has other values than the {dialect.value} network computes; it was changed")
    for row in table.rows:
        places = row.places(dialect)
        if row.stacked:
            for layer, names in enumerate(places):
                yield row.ours, layer, row.from_theirs(_together(row, names, source), dialect)
            continue
        whole = _together(row, places[0], source)
        for names in places[1:]:
            for name, original, part in zip(names, places[0], np.split(whole, len(names))):
                if not _equal(source[name].read(), part):
                    raise NamesMismatch(f"{name} differs from {original}: this network has one for all layers")
        yield row.ours, None, row.from_theirs(whole, dialect)


def _rounding(dtype: np.dtype) -> float:
    """How far numbers up to 1 may be from what a network computes, which a file has in fewer bits."""
    if dtype.itemsize == 1:
        return 0.55 * float(ml_dtypes.finfo(dtype).eps)
    return 1e-5 if dtype == np.float32 else 1e-2


def _together(row: Row, names: tuple[str, ...], source: Source) -> np.ndarray:
    """Concatenates the parts of a tensor of theirs; in float32 where they are of several types."""
    if len(names) == 1:
        return source[names[0]].read()
    types = {source[name].dtype for name in names}
    whole = np.empty(row.shape, types.pop() if len(types) == 1 else np.float32)
    for name, part in zip(names, np.split(whole, len(names))):
        part[...] = source[name].read()
    return whole


def write(table: Table, dialect: Dialect, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Converts our parameters to every tensor of a dialect."""
    for row in table.rows:
        value = params[row.ours]
        for layer, names in enumerate(row.places(dialect)):
            parts = row.to_theirs(value[layer] if row.stacked else value, dialect)
            yield from zip(names, parts)
    yield from table.constants.get(dialect, {}).items()
