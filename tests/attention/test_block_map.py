"""Block maps: a tile called empty or full always is, common masks are judged exactly, and the cost is per tile."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import masks
from attnjax.attention._block_map import BlockMap, block_map, kinds, successors
from attnjax.attention.masks import Mask
from tests.references import attention as reference

BATCH, HEADS = 2, 3
GRIDS = ((40,), (5, 8), (2, 4, 5))  # grids of 40 positions, for neighborhoods
PLANES = (((40, 40), (8, 8)), ((40, 40), (7, 16)), ((24, 56), (16, 5)), ((1, 30), (64, 4)))
"""Lengths T, S and tiles: few, as every operation compiles once for each."""


class Drawn(NamedTuple):
    """A mask, and all its entries as NumPy finds them."""

    mask: Mask
    entries: np.ndarray

    def __and__(self, other):
        return Drawn(self.mask & other.mask, self.entries & other.entries)

    def __or__(self, other):
        return Drawn(self.mask | other.mask, self.entries | other.entries)

    def __invert__(self):
        return Drawn(~self.mask, ~self.entries)


def indices(queries: int, keys: int) -> list[np.ndarray]:
    """Batch, head, query and key of every entry of ``[B, N, T, S]``."""
    return [x.astype(np.int32) for x in np.indices((BATCH, HEADS, queries, keys))]


def entries_of(predicate, queries: int, keys: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # int32 wraps around in NumPy as it does in XLA
        found = predicate(*indices(queries, keys))
    return np.broadcast_to(found, (BATCH, HEADS, queries, keys)).astype(bool)


# --- masks of every kind --------------------------------------------------------------------------------------------

small = st.integers(0, 12)
numbers = st.integers(-60, 60) | st.sampled_from([-(2**31) + 1, -70_000, 70_000, 2**30])


def expressions() -> st.SearchStrategy:
    """Integer expressions ``f(np or jnp, b, n, t, s)``: sums, products, quotients, remainders, minima, choices."""
    constant = numbers.map(lambda c: lambda xp, *at: xp.int32(c) + 0 * at[2])
    place = st.integers(0, 3).map(lambda i: lambda xp, *at: at[i] + 0 * at[2])
    divisor = st.integers(1, 9)

    def larger(inner):
        binary = lambda f: st.tuples(inner, inner).map(lambda e: lambda xp, *at: f(xp, e[0](xp, *at), e[1](xp, *at)))
        unary = lambda f: st.tuples(inner, divisor).map(lambda e: lambda xp, *at: f(xp, e[0](xp, *at), xp.int32(e[1])))
        return st.one_of(
            binary(lambda xp, x, y: x + y),
            binary(lambda xp, x, y: x - y),
            binary(lambda xp, x, y: x * y),
            binary(lambda xp, x, y: xp.minimum(x, y)),
            binary(lambda xp, x, y: xp.maximum(x, y)),
            binary(lambda xp, x, y: xp.where(x < y, x, y + 1)),
            binary(lambda xp, x, y: x ^ y),
            unary(lambda xp, x, d: x // d),
            unary(lambda xp, x, d: x % d),
            unary(lambda xp, x, d: x // -d),
            unary(lambda xp, x, d: x % -d),
            unary(lambda xp, x, d: xp.clip(x, -d, 2 * d)),
            unary(lambda xp, x, d: xp.abs(x - d)),
            unary(lambda xp, x, d: -xp.sign(x - d)),
        )

    return st.recursive(place | constant, larger, max_leaves=5)


COMPARISONS = [
    lambda xp, x, y: x < y,
    lambda xp, x, y: x <= y,
    lambda xp, x, y: x >= y,
    lambda xp, x, y: x == y,
    lambda xp, x, y: x != y,
    lambda xp, x, y: (x.astype(xp.float32) * xp.float32(0.37)) > y.astype(xp.float32),
    lambda xp, x, y: xp.where(x > 0, x < y, y > 3),
    lambda xp, x, y: (x.astype(bool)) & ~(y > 1),
]


@st.composite
def functions(draw, queries, keys):
    """``from_function`` of an arithmetic predicate."""
    left, right, compare = draw(expressions()), draw(expressions()), draw(st.sampled_from(COMPARISONS))
    predicate = lambda xp, *at: compare(xp, left(xp, *at), right(xp, *at))
    mask = lambda: masks.from_function(lambda *at: predicate(jnp, *(jnp.reshape(x, x.shape or (1, 1)) for x in at)))
    return lambda: Drawn(mask(), entries_of(functools.partial(predicate, np), queries, keys))


@st.composite
def look_ups(draw, queries, keys):
    """``from_function`` that looks up the position in an array that it has captured."""
    table = np.array(draw(st.lists(st.integers(0, 5), min_size=64, max_size=64)), np.int32)
    ascending = np.sort(table) if draw(st.booleans()) else table

    def build():
        captured = jnp.asarray(ascending)
        mask = masks.from_function(lambda b, n, t, s: captured[t] >= captured[s] + n)
        return Drawn(mask, entries_of(lambda b, n, t, s: ascending[t] >= ascending[s] + n, queries, keys))

    return build


@st.composite
def simple(draw, queries, keys):
    """The library's own masks, with their definitions."""
    x, y, step = draw(small), draw(small), draw(st.integers(1, 5))
    offset, ids = draw(st.integers(-45, 45)), draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
    per_head = np.array(draw(st.lists(small, min_size=HEADS, max_size=HEADS)), np.int32)
    kinds = [
        (lambda: masks.causal(offset), lambda b, n, t, s: s <= t + offset),
        (lambda: masks.causal(jnp.asarray(per_head)), lambda b, n, t, s: s <= t + per_head[n]),
        (lambda: masks.window(x, y), lambda b, n, t, s: (t - s <= x) & (s - t <= y)),
        (lambda: masks.window(jnp.asarray(per_head), y), lambda b, n, t, s: (t - s <= per_head[n]) & (s - t <= y)),
        (lambda: masks.prefix(x), lambda b, n, t, s: s < x),
        (lambda: masks.sinks(x), lambda b, n, t, s: s < x),
        (lambda: masks.dilated(step, x, y), lambda b, n, t, s: ((t - s) % step == 0) & (t - s <= x * step) & (s - t <= y * step)),
        (lambda: masks.block_local(3 * step), lambda b, n, t, s: t // (3 * step) == s // (3 * step)),
        (lambda: masks.heads(*ids), lambda b, n, t, s: np.isin(n, ids)),
        (lambda: masks.per_head(masks.causal(), masks.sinks(x), masks.window(y)),
         lambda b, n, t, s: np.choose(n, [s <= t, s < x, (s <= t) & (t - s <= y)])),
    ]  # fmt: skip
    mask, predicate = draw(st.sampled_from(kinds))
    return lambda: Drawn(mask(), entries_of(predicate, queries, keys))


@st.composite
def of_arrays(draw, queries, keys):
    """Masks that carry arrays."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    order = np.sort if draw(st.booleans()) else lambda x: x
    q_ids, kv_ids = (order(rng.integers(0, 4, (BATCH, n)).astype(np.int32)) for n in (queries, keys))
    q_len, kv_len = (rng.integers(0, n + 1, BATCH).astype(np.int32) for n in (queries, keys))
    shape = draw(
        st.sampled_from([(queries, keys), (HEADS, queries, 1), (BATCH, 1, 1, keys), (BATCH, HEADS, queries, keys)])
    )
    table = rng.random(shape) < draw(st.sampled_from([0.02, 0.5, 0.98]))
    kinds = [
        (lambda: masks.segments(jnp.asarray(q_ids), jnp.asarray(kv_ids)), lambda b, n, t, s: q_ids[b, t] == kv_ids[b, s]),
        (lambda: masks.segments(jnp.asarray(q_ids[0]), jnp.asarray(kv_ids[0])), lambda b, n, t, s: q_ids[0, t] == kv_ids[0, s]),
        (lambda: masks.lengths(jnp.asarray(q_len), jnp.asarray(kv_len)), lambda b, n, t, s: (t < q_len[b]) & (s < kv_len[b])),
        (lambda: masks.lengths(kv_lengths=jnp.asarray(kv_len)), lambda b, n, t, s: s < kv_len[b]),
        (lambda: masks.from_array(jnp.asarray(table)), lambda b, n, t, s: np.broadcast_to(table, (BATCH, HEADS, queries, keys))),
    ]  # fmt: skip
    mask, predicate = draw(st.sampled_from(kinds))
    return lambda: Drawn(mask(), entries_of(predicate, queries, keys))


@st.composite
def neighborhoods(draw, queries, keys):
    """Neighborhoods in 1 to 3 dimensions (where T = S = 40)."""
    shape = draw(st.sampled_from(GRIDS))
    dilation = tuple(draw(st.integers(1, max(1, n // 2))) for n in shape)
    window = tuple(draw(st.integers(1, n // d)) for n, d in zip(shape, dilation, strict=True))
    stride = tuple(draw(st.integers(1, w)) for w in window)
    causal = tuple(draw(st.booleans()) for _ in shape)
    each = list(zip(shape, window, stride, dilation, causal, strict=True))
    sets = [[reference.neighbors(i, *rest) for i in range(rest[0])] for rest in each]
    places = [reference.coordinates(i, shape) for i in range(queries)]
    plane = np.array(
        [[all(j in near[i] for near, i, j in zip(sets, a, b, strict=True)) for b in places] for a in places]
    )
    mask = lambda: masks.neighborhood(shape, window, stride, dilation, causal)
    return lambda: Drawn(mask(), np.broadcast_to(plane, (BATCH, HEADS, queries, keys)))


@st.composite
def compositions(draw):
    """Any of these, composed, and the lengths and tiles to judge it at.

    What is drawn is a function that builds the mask: JAX runs in the test only, not while Hypothesis draws.
    """
    (queries, keys), tiles = draw(st.sampled_from(PLANES))
    kinds = [simple(queries, keys), of_arrays(queries, keys), functions(queries, keys), look_ups(queries, keys)]
    if queries == keys == 40:
        kinds.append(neighborhoods(queries, keys))
    composed = st.recursive(
        st.one_of(kinds),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: lambda: p[0]() & p[1]()),
            st.tuples(inner, inner).map(lambda p: lambda: p[0]() | p[1]()),
            inner.map(lambda m: lambda: ~m()),
        ),
        max_leaves=4,
    )
    return draw(composed), queries, keys, tiles


# --- what is true of a tile, from its entries -------------------------------------------------------------------------


def judge(entries: np.ndarray, block_q: int, block_kv: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether some and whether every entry of each tile is visible."""
    *_, queries, keys = entries.shape
    rows, cols = range(0, queries, block_q), range(0, keys, block_kv)
    tiles = [[entries[..., t : t + block_q, s : s + block_kv] for s in cols] for t in rows]
    some = np.array([[tile.any((-1, -2)) for tile in row] for row in tiles])
    every = np.array([[tile.all((-1, -2)) for tile in row] for row in tiles])
    return np.moveaxis(some, (0, 1), (-2, -1)), np.moveaxis(every, (0, 1), (-2, -1))


def map_of(mask, queries, keys, tiles, batch=(BATCH,), heads=HEADS):
    return block_map(mask, batch, heads, queries, keys, *tiles)


def assert_sound(found, entries, tiles):
    some, every = judge(entries, *tiles)
    shape = some.shape
    assert not np.any(some & ~np.broadcast_to(found.some, shape)), "a tile called empty has a visible entry"
    assert not np.any(np.broadcast_to(found.every, shape) & ~every), "a tile called full has an invisible entry"


@settings(max_examples=80)
@given(compositions())
def test_a_tile_called_empty_or_full_is(drawn):
    build, queries, keys, tiles = drawn
    composed = build()
    assert_sound(map_of(composed.mask, queries, keys, tiles), composed.entries, tiles)


def exact_masks():
    """Masks of which no tile may be judged vaguely."""
    # Not of offsets below -left: no entry satisfies both, which only their conjunction shows.
    for offset, windows in ((-9, ((16, 3), (100, 100))), (0, ((0, 0), (5, 0), (16, 3))), (16, ((5, 0), (16, 30)))):
        for left, right in windows:
            mask = masks.causal(offset) & masks.window(left, right)
            predicate = lambda b, n, t, s, o=offset, x=left, y=right: (s <= t + o) & (t - s <= x) & (s - t <= y)
            yield pytest.param(mask, predicate, id=f"causal({offset}) & window({left}, {right})")
    yield pytest.param(masks.causal() | masks.prefix(13), lambda b, n, t, s: (s <= t) | (s < 13), id="prefix LM")
    yield pytest.param(~masks.causal(), lambda b, n, t, s: s > t, id="the future")
    yield pytest.param(masks.block_local(10), lambda b, n, t, s: t // 10 == s // 10, id="block local")
    yield pytest.param(
        masks.per_head(masks.causal(), masks.window(4), masks.sinks(2)),
        lambda b, n, t, s: np.choose(n, [s <= t, (s <= t) & (t - s <= 4), s < 2]),
        id="per head",
    )
    yield pytest.param(
        masks.from_function(lambda b, n, t, s: 2 * s <= 3 * t + 5 * n),
        lambda b, n, t, s: 2 * s <= 3 * t + 5 * n,
        id="a user's half-plane",
    )


@pytest.mark.parametrize("tiles", [(8, 8), (16, 5), (7, 13)], ids=str)
@pytest.mark.parametrize("lengths", [(64, 64), (40, 77)], ids=str)
@pytest.mark.parametrize(("mask", "predicate"), list(exact_masks()))
def test_empty_tiles_of_common_masks_are_exact(mask, predicate, lengths, tiles):
    entries = entries_of(predicate, *lengths)
    some, _ = judge(entries, *tiles)
    found = map_of(mask, *lengths, tiles)
    assert_sound(found, entries, tiles)
    extra = np.broadcast_to(found.some, some.shape) & ~some
    assert extra.sum() == 0, f"{extra.sum()} tiles are visited in vain"


@pytest.mark.parametrize("tile", [64, 128])
def test_visited_tiles_of_causal_and_window_follow_the_formula(tile):
    """With T = r tiles: causal visits r (r + 1) / 2; a window of w tiles the diagonal and w below it."""
    rows, width = 16, 3
    visits = lambda mask: int(map_of(mask, rows * tile, rows * tile, (tile, tile), (), 1).some.sum())
    assert visits(masks.causal()) == rows * (rows + 1) // 2
    assert visits(masks.window(width * tile)) == sum(min(i, width) + 1 for i in range(rows))
    assert visits(None) == rows**2
    full = map_of(masks.causal(), rows * tile, rows * tile, (tile, tile), (), 1).every
    assert int(full.sum()) == rows * (rows - 1) // 2


def test_ascending_segments_leave_only_their_own_tiles():
    ids = jnp.repeat(jnp.arange(8), 32)
    found = map_of(masks.segments(ids), 256, 256, (32, 32), (), 1)
    np.testing.assert_array_equal(found.some[0], np.eye(8, dtype=bool))
    np.testing.assert_array_equal(found.every[0], np.eye(8, dtype=bool))


def test_traced_arrays_give_the_same_map():
    rng = np.random.default_rng(0)
    ids, left = np.sort(rng.integers(0, 5, (BATCH, 40))).astype(np.int32), np.array([2, 9, 30], np.int32)

    def of(ids, left, table):
        mask = masks.causal() & masks.segments(ids) & masks.window(left)
        return map_of(mask | masks.from_function(lambda b, n, t, s: table[t] > table[s]), 40, 40, (8, 8))

    table = np.arange(40, dtype=np.int32) // 9
    arguments = tuple(jnp.asarray(x) for x in (ids, left, table))
    eager, jitted = of(*arguments), jax.jit(of)(*arguments)
    np.testing.assert_array_equal(eager.some, jitted.some)
    np.testing.assert_array_equal(eager.every, jitted.every)


def test_map_of_131072_positions_fits_in_16_megabytes():
    """Segment ids are traced; a T x S array would take 17 GB."""
    length = 131_072

    def of(ids):
        mask = (masks.causal() & masks.window(1024) | masks.sinks(4)) & masks.segments(ids)
        return map_of(mask, length, length, (128, 128), (), 8)

    compiled = jax.jit(of).lower(jax.ShapeDtypeStruct((length,), jnp.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 16e6


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=4, max_size=4))
def test_successors_lead_through_the_visible_tiles(rows):
    some = jnp.asarray(rows).reshape(2, 2, 6)
    table = successors(some)
    for row, steps in zip(np.asarray(some).reshape(-1, 6), np.asarray(table).reshape(-1, 7), strict=True):
        walk, j = [], steps[0]
        while j < 6:
            walk.append(int(j))
            j = steps[j + 1]
        assert walk == list(np.flatnonzero(row))


def test_a_tile_that_reaches_beyond_the_last_key_is_not_full():
    some = jnp.array([[True, True, False], [True, True, True]])
    every = jnp.array([[True, False, False], [False, True, True]])
    assert kinds(BlockMap(some, every), 96, 32).tolist() == [[2, 1, 0], [1, 2, 2]]
    assert kinds(BlockMap(some, every), 95, 32).tolist() == [[2, 1, 0], [1, 2, 1]]
