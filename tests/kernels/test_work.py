"""Lists of tiles: every visible tile once, in an order in which what belongs to one place stands together."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.attention._work import FIRST, FULL, LAST, PARTIAL, Fields, merge, work_list

TILES = st.lists(st.integers(0, 2), min_size=24, max_size=24)


@pytest.mark.parametrize("order", ["row", "col", "pair"])
@given(kinds=TILES)
def test_entries(order, kinds):
    tiles = np.reshape(kinds, (1, 1, 4, 6) if order == "row" else (1, 2, 3, 4))
    work = work_list(jnp.asarray(tiles, jnp.int8), order)
    entries = np.asarray(work.entries)[: int(work.steps)]
    row, col, inner = (np.asarray(x) for x in work.fields.unpack(entries))
    row, col, inner = np.broadcast_arrays(row, col, inner)
    place = {"row": row, "col": col, "pair": row * tiles.shape[-1] + col}[order]
    assert (np.diff(place) >= 0).all()
    assert set(place.tolist()) == set(
        range({"row": tiles.shape[2], "col": tiles.shape[3]}.get(order, tiles[0, 0].size))
    )
    for each in set(place.tolist()):
        (here,) = np.nonzero(place == each)
        assert [bool(entries[i] & FIRST) for i in here] == [i == here[0] for i in here]
        assert [bool(entries[i] & LAST) for i in here] == [i == here[-1] for i in here]
    visited = np.zeros_like(tiles)
    for flags, i, j, n in zip(entries, row, col, inner, strict=True):
        assert visited[0, n, i, j] == 0
        visited[0, n, i, j] = 2 * bool(flags & FULL) + bool(flags & PARTIAL)
    np.testing.assert_array_equal(visited, tiles)


def test_shorter_lists_do_nothing_at_the_end():
    tiles = jnp.asarray([[[[2, 2], [2, 2]]], [[[1, 0], [0, 0]]]], jnp.int8)
    work = work_list(tiles, "row")
    assert int(work.steps) == 4
    second = np.asarray(work.entries).reshape(2, -1)[1]
    assert (second[2:] & (FIRST | LAST | PARTIAL | FULL)).tolist() == [0, 0]
    assert work.fields.unpack(second[1:])[0].tolist() == [1, 1, 1]


def test_merged_lists_visit_what_any_visits():
    tiles = jnp.asarray([[2, 2, 0, 1], [2, 1, 0, 0]], jnp.int8)
    assert merge(tiles).tolist() == [[2, 1, 0, 1]]


def test_fields_that_do_not_fit_say_so():
    assert Fields(512, 512, 512).fit
    assert not Fields(1024, 512, 512).fit


@given(kinds=st.lists(st.integers(0, 2), min_size=14, max_size=14))
def test_groups_say_what_each_of_their_tiles_is(kinds):
    tiles = np.reshape(kinds, (1, 1, 2, 7))
    work = work_list(jnp.asarray(tiles, jnp.int8), "row", 4)
    fields, visited = work.fields, np.zeros((2, 8), int)
    for entry in np.asarray(work.entries)[: int(work.steps)]:
        row, group, _ = (int(x) for x in fields.unpack(entry))
        here = np.array([2 * bool(fields.full(entry, i, 1)) + bool(fields.partial(entry, i)) for i in range(4)])
        visited[row, 4 * group : 4 * group + 4] = here
        assert bool(entry & FULL) == bool(fields.full(entry, 0, 4)) == (here == 2).all()
        assert bool(entry & PARTIAL) == (here.any() and not (here == 2).all())
        assert bool(fields.some(entry, 2, 2)) == here[2:].any()
    np.testing.assert_array_equal(visited[:, :7], tiles[0, 0])
    assert not visited[:, 7].any()
