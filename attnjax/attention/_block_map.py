"""Block maps: which tiles of the T x S plane a mask leaves empty, full or partial."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from attnjax.attention import _intervals
from attnjax.attention._component import Leaf, Where, aligned, leaves, replace_leaves
from attnjax.attention._intervals import Interval


class BlockMap(NamedTuple):
    """What is known of each tile; ``*#B #N`` are of size one where the mask does not depend on them.

    Attributes:
        some: some entry may be visible (False: the tile is surely empty).
        every: every entry is surely visible (the tile is full).
    """

    some: Bool[Array, "... rows cols"]
    every: Bool[Array, "... rows cols"]


def _ends(positions: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest position of each block."""
    starts = np.arange(0, len(positions), block)
    return np.minimum.reduceat(positions, starts), np.maximum.reduceat(positions, starts)


def _leaf_interval(leaf: Leaf, sizes: dict, blocks: dict[str, int]) -> Interval:
    """Least and greatest entry of an array over each tile, laid out ``[*B, N, rows, cols]`` with ones where absent."""
    value, letters = aligned(leaf, sizes)
    if None in letters:  # an array that is looked up in: its own axes stay, and only its extremes matter
        return _intervals.exactly(value)
    low = high = value
    for axis, letter in enumerate(letters):
        if letter in blocks and value.shape[axis] != 1:
            low, high = (_reduce_blocks(x, axis, blocks[letter], f) for x, f in ((low, jnp.min), (high, jnp.max)))
    low, high = (_full_rank(x, letters, sizes) for x in (low, high))
    if jnp.issubdtype(low.dtype, jnp.floating):
        low, high = jnp.where(jnp.isnan(low), -jnp.inf, low), jnp.where(jnp.isnan(high), jnp.inf, high)
    return Interval(low, high)


def _reduce_blocks(x: jax.Array, axis: int, block: int, reduce: Any) -> jax.Array:
    size = x.shape[axis]
    count = -(-size // block)
    pad = [(0, count * block - size if i == axis else 0) for i in range(x.ndim)]
    x = jnp.pad(x, pad, mode="edge")
    return reduce(x.reshape(*x.shape[:axis], count, block, *x.shape[axis + 1 :]), axis=axis + 1)


def _full_rank(x: jax.Array, letters: tuple, sizes: dict) -> jax.Array:
    order = [a for a in "BNTS" for _ in sizes[a]]
    present = list(letters)
    shape, at = [], 0
    for letter in order:
        if at < len(present) and present[at] == letter:
            shape.append(x.shape[at])
            at += 1
        else:
            shape.append(1)
    return x.reshape(shape)


def block_map(
    mask: Any,
    batch: tuple[int, ...],
    heads: int,
    queries: int,
    keys: int,
    block_q: int,
    block_kv: int,
    order: Callable[[int], np.ndarray] = np.arange,
) -> BlockMap:
    """The block map of a mask, by interval evaluation of its predicate; no T x S entry is ever made.

    Args:
        mask: a mask, or None for everything visible.
        batch: batch shape.
        heads: number of query heads, N.
        queries: T.
        keys: S.
        block_q: queries in a tile.
        block_kv: keys in a tile.
        order: positions of the tokens of a sequence of some length, as they lie in the arrays.

    Returns:
        A ``BlockMap`` with arrays ``[*#B, #N, ceil(T / block_q), ceil(S / block_kv)]``.
    """
    rows, cols = -(-queries // block_q), -(-keys // block_kv)
    rank = len(batch) + 3
    if mask is None:
        everything = jnp.ones((1,) * (rank - 2) + (rows, cols), bool)
        return BlockMap(everything, everything)
    sizes = {"B": batch, "N": (heads,), "T": (queries,), "S": (keys,)}
    blocks = {"T": block_q, "S": block_kv}
    found = leaves(mask)
    intervals = [_leaf_interval(leaf, sizes, blocks) for leaf in found]

    def place(x, axis: int) -> jax.Array:
        return jnp.asarray(x, jnp.int32).reshape([-1 if i == axis else 1 for i in range(rank)])

    t = Interval(*(place(x, rank - 2) for x in _ends(order(queries), block_q)))
    s = Interval(*(place(x, rank - 1) for x in _ends(order(keys), block_kv)))
    head = _intervals.exactly(place(np.arange(heads), rank - 3))
    flat = jnp.arange(int(np.prod(batch)), dtype=jnp.int32).reshape(*batch, 1, 1, 1)
    where = [_intervals.exactly(flat), head, t, s]

    def predicate(batch_index, head_index, t, s, *values):
        at = Where(batch_index, head_index, t, s, queries, keys)
        return replace_leaves(mask, values).visible(at)

    scalar, tile = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = [_tile_shape(leaf, sizes) for leaf in found]
    jaxpr = jax.make_jaxpr(predicate)(scalar, scalar, tile, tile, *shapes)
    (visible,) = _intervals.evaluate(jaxpr, [*where, *intervals])
    depends = _dependence(visible, rank)
    shape = (*depends[:-2], rows, cols)
    return BlockMap(jnp.broadcast_to(visible.high, shape), jnp.broadcast_to(visible.low, shape))


def _dependence(visible: Interval, rank: int) -> tuple[int, ...]:
    shape = np.broadcast_shapes(visible.low.shape, visible.high.shape)
    return (1,) * (rank - len(shape)) + tuple(shape)


def _tile_shape(leaf: Leaf, sizes: dict) -> jax.ShapeDtypeStruct:
    value, letters = aligned(leaf, sizes)
    own = tuple(n for n, a in zip(value.shape, letters, strict=True) if a is None)
    positions = (1, 1) if ("T" in letters or "S" in letters) else ()
    return jax.ShapeDtypeStruct((*positions, *own), value.dtype)


EMPTY, PARTIAL, FULL = 0, 1, 2


def kinds(blocks: BlockMap, keys: int, block_kv: int) -> Int[Array, "... rows cols"]:
    """Of each tile: EMPTY, PARTIAL or FULL. A tile that reaches beyond the last key is not full."""
    every = blocks.every
    if keys % block_kv:
        every &= lax.broadcasted_iota(jnp.int32, every.shape, every.ndim - 1) < every.shape[-1] - 1
    return jnp.where(blocks.some, jnp.where(every, FULL, PARTIAL), EMPTY).astype(jnp.int8)


def successors(some: Bool[Array, "... rows cols"]) -> Int[Array, "... rows next"]:
    """For each row of tiles and each column j: the first visible column at or after j, or the number of columns."""
    cols = some.shape[-1]
    here = jnp.where(some, jnp.arange(cols, dtype=jnp.int32).reshape((1,) * (some.ndim - 1) + (cols,)), cols)
    end = jnp.full((*some.shape[:-1], 1), cols, jnp.int32)
    return jnp.concatenate([lax.cummin(here, axis=some.ndim - 1, reverse=True), end], axis=-1)
