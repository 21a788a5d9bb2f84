"""Lists of the tiles that are visited: a kernel's grid runs over the list, so that an empty tile costs nothing."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pallas_kernels.attention._plan import Plan

FIRST, LAST, PARTIAL, FULL = 1, 2, 4, 8
"""Flags of an entry: first or last of those that are added up at one place; its kind (neither: nothing is added)."""

_FLAGS = 4
_MEMORY = 512 * 1024
"""Bytes of scalar memory that lists may take, of the 1 MiB there is."""


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where an entry holds what it says, above the flags: if a group has several tiles, a bit for each that is partial
    and a bit for each that is full; then column, row, and the number of the inner point."""

    rows: int
    cols: int
    inner: int
    group: int = 1

    def _bits(self) -> tuple[int, int, int]:
        return tuple(max(n - 1, 0).bit_length() for n in (self.cols, self.rows, self.inner))  # type: ignore[return-value]

    @property
    def _start(self) -> int:
        return _FLAGS + (2 * self.group if self.group > 1 else 0)

    @property
    def fit(self) -> bool:
        return self._start + sum(self._bits()) <= 31

    def pack(self, row, col, inner):
        c, r, _ = self._bits()
        return col << self._start | row << (self._start + c) | inner << (self._start + c + r)

    def _run(self, entry, kind: int, first, count: int):
        """Bits of a kind (0 partial, 1 full) of some tiles of an entry's group."""
        return (entry >> (_FLAGS + kind * self.group + first)) & ((1 << count) - 1)

    def partial(self, entry, tile):
        """Whether a tile of an entry's group is partial."""
        return self._run(entry, 0, tile, 1) != 0

    def full(self, entry, first, count: int):
        """Whether all of some tiles of an entry's group are full."""
        return self._run(entry, 1, first, count) == (1 << count) - 1

    def some(self, entry, first, count: int):
        """Whether any of some tiles of an entry's group is visited."""
        return (self._run(entry, 0, first, count) | self._run(entry, 1, first, count)) != 0

    def unpack(self, entry) -> tuple:
        """Row, column and inner point of an entry; its flags are its lowest bits."""
        found, shift = [], self._start
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


def by_point(plan: Plan, inner: Sequence[int], tiles: jax.Array) -> tuple[jax.Array, list[int]]:
    """A plan's block map as ``[lists, inner points, rows, cols]``, and the outer dimensions that the lists follow.

    Args:
        plan: whose block map it is.
        inner: outer dimensions that are walked through inside a list.
        tiles: the block map, by ``plan.visit``.
    """
    grid, dims = plan.grid, plan.visit.dims[:-2]
    followed = [d for d in dims if d is not None and d not in inner]
    inside = [d for d in inner if d in dims]
    tiles = tiles.transpose(*(dims.index(d) for d in (*followed, *inside)), len(dims), len(dims) + 1)
    lists = math.prod(grid.outer[d] for d in followed)
    shape = [grid.outer[d] if d in inside else 1 for d in inner]
    tiles = tiles.reshape(lists, *shape, grid.rows, grid.cols)
    tiles = jnp.broadcast_to(tiles, (lists, *(grid.outer[d] for d in inner), grid.rows, grid.cols))
    return tiles.reshape(lists, -1, grid.rows, grid.cols), followed


def merge(tiles: jax.Array) -> jax.Array:
    """Tiles ``[L, ...]`` of several lists as those of one ``[1, ...]``: empty or full only where all are."""
    return together(tiles, 0)[None].astype(tiles.dtype)


def together(tiles: jax.Array, axis: int) -> jax.Array:
    """The kind of all tiles along an axis as one."""
    return jnp.where(tiles.max(axis) == 0, 0, jnp.where(tiles.min(axis) == 2, 2, 1))


def work_list(tiles: jax.Array, order: str, group: int = 1) -> WorkList:
    """The entries of every list, in an order in which what is added up at one place stands together.

    Args:
        tiles: ``[lists, inner, rows, cols]``: 0 empty, 1 partial, 2 full.
        order: "row" adds up along columns (the inner points are one), "col" along rows and inner points, "pair" along
            inner points.
        group: neighboring tiles along the columns ("row") or rows ("col") that make one entry: full if all are, empty
            if all are.

    Returns:
        The list; rows and columns are those of groups. A place that no tile is visited for has one entry without a
        kind.
    """
    tiles, bits = _grouped(tiles.astype(jnp.int32), -1 if order == "row" else -2, group)
    count, inner, rows, cols = tiles.shape
    fields = Fields(rows, cols, inner, group)
    axes = {"row": (0, 2, 1, 3), "col": (0, 3, 1, 2), "pair": (0, 2, 3, 1)}[order]
    index = jnp.indices((1, inner, rows, cols), dtype=jnp.int32, sparse=True)
    place = jnp.broadcast_to(fields.pack(index[2], index[3], index[1]), tiles.shape)
    if group > 1:
        place = place | bits << _FLAGS
    places = {"row": rows, "col": cols, "pair": rows * cols}[order]
    kind, place = (x.transpose(axes).reshape(count, places, -1) for x in (tiles, place))
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


def _grouped(tiles: jax.Array, axis: int, group: int) -> tuple[jax.Array, jax.Array]:
    """Kinds of groups of tiles along an axis, and a bit for each tile that is partial, then for each that is full."""
    if group == 1:
        return tiles, tiles
    axis += tiles.ndim
    after = -tiles.shape[axis] % group
    tiles = jnp.pad(tiles, [(0, after if i == axis else 0) for i in range(tiles.ndim)])
    tiles = tiles.reshape(*tiles.shape[:axis], -1, group, *tiles.shape[axis + 1 :])
    axis += 1
    weights = (1 << jnp.arange(group, dtype=jnp.int32)).reshape([-1 if i == axis else 1 for i in range(tiles.ndim)])
    bits = (tiles == 1) * weights + (tiles == 2) * (weights << group)
    return together(tiles, axis).astype(jnp.int32), bits.sum(axis, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Visits:
    """For each place, the tiles that are added up there: full ones first.

    Attributes:
        tiles: ``[lists, places, capacity]``, int32: inner point times the tiles along the other dimension, plus tile.
        counts: ``[lists, places, 2]``: how many are full, and how many there are.
        order: ``[lists, places]``: places, those with the most tiles first, so that no long one is left to the end.
    """

    tiles: jax.Array
    counts: jax.Array
    order: jax.Array


def visits(tiles: jax.Array, order: str, in_order: bool) -> Visits:
    """What each place visits; see ``work_list`` for the arguments. ``in_order`` takes full tiles for partial ones."""
    tiles = jnp.minimum(tiles, 1) if in_order else tiles
    axes = {"row": (0, 2, 1, 3), "col": (0, 3, 1, 2), "pair": (0, 2, 3, 1)}[order]
    lists, _, rows, cols = tiles.shape
    places = {"row": rows, "col": cols, "pair": rows * cols}[order]
    kind = tiles.astype(jnp.int32).transpose(axes).reshape(lists, places, -1)
    # Two kinds of tiles, in the order in which they stand: a sort by kind that is stable.
    listed = jnp.argsort(2 - kind, axis=-1, stable=True).astype(jnp.int32)
    counts = jnp.stack([(kind == 2).sum(-1), (kind > 0).sum(-1)], -1).astype(jnp.int32)
    longest = jnp.argsort(-counts[..., 1], axis=-1, stable=True).astype(jnp.int32)
    return Visits(listed, counts, longest)


def fits(lists: int, inner: int, rows: int, cols: int) -> bool:
    """Whether lists of these sizes fit the scalar memory."""
    return 4 * lists * inner * rows * cols <= _MEMORY
