"""Masks, scores, normalizers and statistics: frozen dataclasses whose arrays know which axes they have.

A component is written for one tile. Each array field declares its axes (``array("B", "N", "T", "S")``: batch, query
head, query, key; None for an axis of its own), aligned to the right and broadcast as in NumPy. Inside a tile the batch
and head axes are gone and positions are laid out as ``[bq, bk]`` with ones where an axis is missing, so that a method
reads like its equation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

Axis = str | None
C = TypeVar("C")


def array(*axes: Axis, **knobs) -> Any:
    """A field that holds an array (or a number) with these axes, or a component or tuple of components."""
    return dataclasses.field(metadata={"axes": axes}, **knobs)


def static(**knobs) -> Any:
    """A field that is part of the program: hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **knobs)


@dataclass_transform(field_specifiers=(array, static))
def component(cls: type[C]) -> type[C]:
    """Make a frozen dataclass and a JAX pytree of a class whose fields are ``array(...)`` or ``static()``."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(part):
        return [getattr(part, name) for name in data], tuple(getattr(part, name) for name in meta)

    def flatten_with_keys(part):
        children, aux = flatten(part)
        return list(zip(keys, children, strict=True)), aux

    def unflatten(aux, children):  # not by cls(...): JAX fills trees with placeholders, which no check may see
        part = object.__new__(cls)
        for name, value in (*zip(meta, aux, strict=True), *zip(data, children, strict=True)):
            object.__setattr__(part, name, value)
        return part

    # Not register_dataclass: its tree structures do not compare the class (jax 0.10 to 0.12), so that about one in a
    # hundred lookups in a jit cache that holds both takes one mask's program for another's with as many arrays.
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def as_array(value: Any, dtype: Any = None) -> Any:
    """The value as an array; numbers become NumPy arrays, so that they stay known while ``jit`` traces."""
    if isinstance(value, jax.Array):
        return value if dtype is None else value.astype(dtype)
    return np.asarray(value, dtype)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a component, its axes, and the name under which an error speaks of it."""

    value: Any
    axes: tuple[Axis, ...]
    name: str


def leaves(part: Any) -> list[Leaf]:
    """The arrays of a component (or of a tuple of them, or None), in the order of its pytree."""
    if part is None:
        return []
    if isinstance(part, tuple):
        return [leaf for item in part for leaf in leaves(item)]
    found = []
    for f in dataclasses.fields(part):
        if f.metadata.get("static"):
            continue
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value) or isinstance(value, tuple):
            found += leaves(value)
        elif value is not None:
            found.append(Leaf(value, f.metadata["axes"], f"{type(part).__name__}.{f.name}"))
    return found


def replace_leaves(part: Any, values: Sequence[Any]) -> Any:
    """The component with other arrays in the place of its own."""
    structure = jax.tree_util.tree_structure(part)
    return jax.tree_util.tree_unflatten(structure, list(values))


def aligned(leaf: Leaf, sizes: dict[str, tuple[int, ...]]) -> tuple[jax.Array, tuple[Axis, ...]]:
    """The array with every declared axis present (of size one where it was missing), and a letter for each axis.

    ``sizes`` gives for each letter the extents it stands for ("B" may stand for several axes, or for none).

    Raises:
        ValueError: an axis is neither one nor the size that attention has there.
    """
    letters = [(a, n) for a in leaf.axes for n in ((None,) if a is None else sizes[a])]
    value = jnp.asarray(leaf.value)
    if value.ndim > len(letters):
        raise ValueError(_shape_message(leaf, np.shape(value), sizes))
    value = value.reshape((1,) * (len(letters) - value.ndim) + value.shape)
    for (_, size), got in zip(letters, value.shape, strict=True):
        if size is not None and got not in (1, size):
            raise ValueError(_shape_message(leaf, np.shape(leaf.value), sizes))
    return value, tuple(a for a, _ in letters)


def _shape_message(leaf: Leaf, shape: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> str:
    want = ", ".join("any" if a is None else f"{a}={'x'.join(map(str, sizes[a])) or '(none)'}" for a in leaf.axes)
    return (
        f"{leaf.name}: got an array of shape {tuple(shape)}, want one that broadcasts to [{want}] "
        f"(B batch, N query heads, T queries, S keys); give it those axes, or ones of size 1 or missing on the left"
    )


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a tile lies in the plane of queries and keys.

    Attributes:
        batch: flat index over the batch axes, a scalar.
        head: query head, a scalar.
        t: query positions, ``[bq, 1]``.
        s: key positions, ``[1, bk]``.
        queries: T, the number of queries.
        keys: S, the number of keys.
        visible: number of visible keys of each query, ``[bq, 1]``; only where a normalizer asked for it.
    """

    batch: jax.Array
    head: jax.Array
    t: jax.Array
    s: jax.Array
    queries: int
    keys: int
    visible: Any = None
