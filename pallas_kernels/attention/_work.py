"""Lists of the tiles that are visited: a kernel's grid runs over the list, so that an empty tile costs nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp

FIRST, LAST, PARTIAL, FULL = 1, 2, 4, 8
"""Flags of an entry: first or last of those that are added up at one place; the tile's kind (neither: nothing is)."""

_FLAGS = 4
_MEMORY = 512 * 1024
"""Bytes of scalar memory that lists may take, of the 1 MiB there is."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where an entry holds its coordinates, above the flags: column, row, then the number of the inner point."""

    rows: int
    cols: int
    inner: int

    def _bits(self) -> tuple[int, int, int]:
        return tuple(max(n - 1, 0).bit_length() for n in (self.cols, self.rows, self.inner))  # type: ignore[return-value]

    @property
    def fit(self) -> bool:
        return _FLAGS + sum(self._bits()) <= 31

    def pack(self, row, col, inner, flags):
        c, r, _ = self._bits()
        return flags | col << _FLAGS | row << (_FLAGS + c) | inner << (_FLAGS + c + r)

    def unpack(self, entry) -> tuple:
        """Row, column and inner point of an entry; its flags are its lowest bits."""
        found, shift = [], _FLAGS
        for bits in self._bits():
            found.append((entry >> shift) & ((1 << bits) - 1) if bits else jnp.int32(0))
            shift += bits
        col, row, inner = found
        return row, col, inner


@dataclasses.dataclass(frozen=True)
class WorkList:
    """Entries for each of some lists.

    Attributes:
        entries: ``[lists * capacity]``, int32.
        capacity: entries kept for each list.
        steps: the greatest number of entries that any list has; traced where the tiles are.
        fields: how to read an entry.
    """

    entries: jax.Array
    capacity: int
    steps: jax.Array
    fields: Fields


def merge(tiles: jax.Array) -> jax.Array:
    """Tiles ``[L, ...]`` of several lists as those of one ``[1, ...]``: empty or full only where all are."""
    return jnp.where(tiles.max(0) == 0, 0, jnp.where(tiles.min(0) == 2, 2, 1))[None].astype(tiles.dtype)


def work_list(tiles: jax.Array, order: str) -> WorkList:
    """The entries of every list, in an order in which what is added up at one place stands together.

    Args:
        tiles: ``[lists, inner, rows, cols]``: 0 empty, 1 partial, 2 full.
        order: "row" adds up along columns (the inner points are one), "col" along rows and inner points, "pair" along
            inner points.

    Returns:
        The list. A place that no tile is visited for has one entry without a kind.
    """
    count, inner, rows, cols = tiles.shape
    fields = Fields(rows, cols, inner)
    axes = {"row": (0, 2, 1, 3), "col": (0, 3, 1, 2), "pair": (0, 2, 3, 1)}[order]
    index = jnp.indices((1, inner, rows, cols), dtype=jnp.int32, sparse=True)
    place = fields.pack(index[2], index[3], index[1], jnp.int32(0))
    places = {"row": rows, "col": cols, "pair": rows * cols}[order]
    kind = tiles.transpose(axes).reshape(count, places, -1).astype(jnp.int32)
    place = jnp.broadcast_to(place, (1, inner, rows, cols)).transpose(axes).reshape(1, places, -1)
    empty = (kind == 0).all(-1, keepdims=True)
    entry = (kind > 0) | (empty & (jnp.arange(kind.shape[-1]).reshape(1, 1, -1) == 0))
    number = jnp.cumsum(entry, -1, dtype=jnp.int32)
    first, last = entry & (number == 1), entry & (number == number[..., -1:])
    flags = FIRST * first + LAST * last + PARTIAL * (kind == 1) + FULL * (kind == 2)
    packed = (place | flags.astype(jnp.int32)).reshape(count, -1)
    capacity = math.prod(kind.shape[1:])
    at = jnp.cumsum(entry.reshape(count, -1), -1, dtype=jnp.int32)
    used = at[:, -1:]
    slot = jnp.where(entry.reshape(count, -1), at - 1, capacity)
    rows_of = jnp.arange(count, dtype=jnp.int32)[:, None]
    listed = jnp.zeros((count, capacity), jnp.int32).at[rows_of, slot].set(packed, mode="drop")
    # Shorter lists repeat their last place without a kind: nothing is read again, nothing is done.
    final = jnp.take_along_axis(listed, used - 1, 1) & ~(FIRST | LAST | PARTIAL | FULL)
    listed = jnp.where(jnp.arange(capacity, dtype=jnp.int32)[None] < used, listed, final)
    return WorkList(listed.reshape(-1), capacity, used.max(), fields)


def fits(lists: int, inner: int, rows: int, cols: int) -> bool:
    """Whether lists of these sizes fit the scalar memory."""
    return 4 * lists * inner * rows * cols <= _MEMORY
