"""A chunk of one head in matrices alone, as a kernel computes it: from the state before it to its outputs and the state
after it.

The same equations as ``_forms``, in what matrix units and vector registers do: products, elementwise functions and sums
of matrices. Numbers of tokens are rows ``[1, C]``; sums over tokens are products with triangles of ones; what is picked
is summed with everything else hidden. Products with a 16-bit operand round the other one to its type; all sums are
float32.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.linear._forms import Reads
from attnjax.linear._poles import Read

LEAF = 16
"""Tokens between which a decay by feature, or the inverse of a triangle, is computed pair by pair."""


class Kind(NamedTuple):
    """What a chunk has.

    Attributes:
        groups: query heads that read the state.
        decay: by "token", by "feature", or None.
        delta: whether writes correct the state.
        segmented: whether segments start in it.
        reads: when the state is read.
    """

    groups: int
    decay: Literal["token", "feature"] | None
    delta: bool
    segmented: bool
    reads: Reads


class Chunk(NamedTuple):
    """A chunk's tokens.

    Attributes:
        q: ``[C, H]`` for each query head.
        k: ``[C, H]``.
        v: ``[C, V]``.
        log: ``[1, C]`` or ``[C, H]``, or None.
        beta: ``[1, C]``, or None.
        start: 1 where a segment starts, else 0, ``[1, C]``, or None.
    """

    q: tuple[jax.Array, ...]
    k: jax.Array
    v: jax.Array
    log: jax.Array | None
    beta: jax.Array | None
    start: jax.Array | None


def step(kind: Kind, state: jax.Array, chunk: Chunk) -> tuple[jax.Array, list[jax.Array]]:
    """The state ``[H, V]`` after a chunk, and its outputs ``[C, V]`` for each query head."""
    k, v = chunk.k, chunk.v
    place = _Places(len(k))
    segments = _Segments(place, chunk.start)
    decay = _DECAYS[kind.decay](place, chunk.log)
    write = v
    if kind.delta:
        assert chunk.beta is not None
        beta = place.column(chunk.beta)
        between = beta * decay.weights(k, k, kind.reads.feedback, segments.same)
        known = segments.first(decay.reads(kind.reads.feedback) * k)
        write = _product(inverse(between), beta * (v - _product(known.astype(k.dtype), state)))
    out = []
    for q in chunk.q:
        weights = decay.weights(q, k, kind.reads.output, segments.same)
        seen = segments.first(decay.reads(kind.reads.output) * q)
        out.append(_product(_narrow(weights, v), _narrow(write, v)) + _product(seen.astype(q.dtype), state))
    left = segments.last(decay.left() * k).astype(k.dtype)
    kept = segments.kept(decay.kept())
    return state + kept * state + _product(left, write, (0, 0)), out


def _narrow(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.astype(like.dtype)


def _product(x: jax.Array, y: jax.Array, over: tuple[int, int] = (1, 0)) -> jax.Array:
    """A product of matrices over one axis of each; with a 16-bit operand the other one is rounded to its type."""
    narrow = [a.dtype for a in (x, y) if a.dtype.itemsize == 2]
    if narrow:
        x, y = x.astype(narrow[0]), y.astype(narrow[0])
    wide = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    precision = None if narrow else lax.Precision.HIGHEST
    return lax.dot_general(
        x, y, (((over[0],), (over[1],)), ((), ())), precision=precision, preferred_element_type=wide
    )  # fmt: skip


class _Places:
    """Where tokens are.

    Attributes:
        row, col: the number of a row, and of a column, ``[C, C]``.
    """

    def __init__(self, length: int):
        self.length = length
        self.row, self.col = (lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))

    def column(self, row: jax.Array) -> jax.Array:
        """``[1, C]`` to ``[C, 1]``."""
        return jnp.sum(jnp.where(self.row == self.col, row, 0), 1, keepdims=True)

    def summed(self, row: jax.Array) -> jax.Array:
        """Sums of ``[1, C]`` up to each token."""
        upper = (self.row <= self.col).astype(row.dtype)
        return _product(row, upper)

    def last(self, row: jax.Array) -> jax.Array:
        """The last number of ``[1, C]``, ``[1, 1]``."""
        at = lax.broadcasted_iota(jnp.int32, row.shape, 1) == self.length - 1
        return jnp.sum(jnp.where(at, row, 0), 1, keepdims=True)

    def seen(self, read: Read) -> jax.Array:
        """Which writes a read sees."""
        return self.row >= self.col if read == "after" else self.row > self.col


class _Segments:
    """Which tokens belong together."""

    def __init__(self, place: _Places, start: jax.Array | None):
        self.number = None
        self.same: jax.Array | None = None
        if start is None:
            return
        row = place.summed(start)
        self.number, self.final = place.column(row), place.last(row)
        self.same = jnp.abs(row - self.number) < 0.5

    def first(self, x: jax.Array) -> jax.Array:
        """Zero but in the segment that the state before the chunk belongs to."""
        return x if self.number is None else jnp.where(jnp.broadcast_to(self.number, x.shape) < 0.5, x, 0)

    def last(self, x: jax.Array) -> jax.Array:
        """Zero but in the segment that the state after the chunk belongs to."""
        if self.number is None:
            return x
        return jnp.where(jnp.broadcast_to(self.number - self.final, x.shape) > -0.5, x, 0)

    def kept(self, x: jax.Array) -> jax.Array:
        """What stays of the state, less one."""
        return x if self.number is None else jnp.where(jnp.broadcast_to(self.final, x.shape) < 0.5, x, -1)


class _Keep:
    """No decay."""

    def __init__(self, place: _Places, log: jax.Array | None):
        self.place = place

    def weights(self, x: jax.Array, y: jax.Array, read: Read, same: jax.Array | None) -> jax.Array:
        """``<x_i, y_j>`` of what a read sees, times the decay in between, ``[C, C]``."""
        seen = self.place.seen(read)
        return jnp.where(seen if same is None else seen & same, _product(x, y, (1, 1)), 0)

    def reads(self, read: Read) -> jax.Array:
        """What each read sees of the state before the chunk, ``[C, 1]`` or ``[C, H]``."""
        return jnp.ones((1, 1), jnp.float32)

    def left(self) -> jax.Array:
        """What is left of each write after the chunk, likewise."""
        return jnp.ones((1, 1), jnp.float32)

    def kept(self) -> jax.Array:
        """What is left of the state after the chunk, less one, ``[1, 1]`` or ``[H, 1]``."""
        return jnp.zeros((1, 1), jnp.float32)


class _ByToken(_Keep):
    """One decay for all features of a token."""

    def __init__(self, place: _Places, log: jax.Array | None):
        assert log is not None
        self.place, self.log, self.sums = place, log, place.summed(log)

    def _at(self, read: Read) -> jax.Array:
        return self.place.column(self.sums - self.log if read == "before" else self.sums)

    def weights(self, x, y, read, same):
        place, seen = self.place, self.place.seen(read)
        seen = seen if same is None else seen & same
        # As in _poles: pairs with nothing in between have no exponential, and what is hidden is so before it.
        next_to = place.row == place.col + (1 if read == "before" else 0)
        decayed = jnp.exp(jnp.where(seen & ~next_to, self._at(read) - self.sums, -jnp.inf))
        return _product(x, y, (1, 1)) * jnp.where(seen & next_to, 1, decayed)

    def reads(self, read):
        return jnp.exp(self._at(read))

    def left(self):
        return jnp.exp(self.place.column(self.place.last(self.sums) - self.sums))

    def kept(self):
        return _expm1(self.place.last(self.sums))


class _ByFeature(_Keep):
    """A decay for each feature of a token."""

    def __init__(self, place: _Places, log: jax.Array | None):
        assert log is not None
        lower = (place.row >= place.col).astype(log.dtype)
        self.place, self.log, self.sums = place, log, _product(lower, log)
        at = lax.broadcasted_iota(jnp.int32, log.shape, 0) == place.length - 1
        self.total = jnp.sum(jnp.where(at, self.sums, 0), 0, keepdims=True)

    def _at(self, read: Read) -> jax.Array:
        return self.sums - self.log if read == "before" else self.sums

    def weights(self, x, y, read, same):
        """Halves of stretches meet in products, as in ``_poles``, down to leaves; there pair by pair."""
        place, rows, cols = self.place, self._at(read), self.sums
        length, width = cols.shape
        leaf = min(LEAF, length)
        found = jnp.zeros((length, length), cols.dtype)
        size = leaf
        while size < length:
            late = (lax.broadcasted_iota(jnp.int32, cols.shape, 0) // size) % 2 == 1
            cut = _picked(cols, 2 * size, size - 1)
            after = x * jnp.exp(jnp.where(late, rows - cut, -jnp.inf))
            before = y * jnp.exp(jnp.where(late, -jnp.inf, cut - cols))
            together = place.row // (2 * size) == place.col // (2 * size)
            found += jnp.where(together, _product(_narrow(after, x), _narrow(before, y), (1, 1)), 0)
            size *= 2
        within = lax.broadcasted_iota(jnp.int32, cols.shape, 0) % leaf
        for j in range(leaf):
            reached = within >= j if read == "after" else within > j
            gone = jnp.exp(jnp.where(reached, rows - _picked(cols, leaf, j), -jnp.inf))
            gone = jnp.where(within == j, 1, gone) if read == "after" else gone
            pairs = jnp.sum(x * gone * _picked(y.astype(cols.dtype), leaf, j), 1, keepdims=True)
            here = (place.col % leaf == j) & (place.col // leaf == place.row // leaf)
            found += jnp.where(here, pairs, 0)
        seen = place.seen(read)
        return jnp.where(seen if same is None else seen & same, found, 0)

    def reads(self, read):
        return jnp.exp(self._at(read))

    def left(self):
        return jnp.exp(self.total - self.sums)

    def kept(self):
        width = self.total.shape[1]
        return _Places(width).column(_expm1(self.total))


_DECAYS = {None: _Keep, "token": _ByToken, "feature": _ByFeature}


def _picked(x: jax.Array, size: int, which: int) -> jax.Array:
    """Of each ``size`` rows one, in the place of all."""
    blocks = x.reshape(-1, size, x.shape[1])
    at = lax.broadcasted_iota(jnp.int32, blocks.shape, 1) == which
    one = jnp.sum(jnp.where(at, blocks, 0), 1, keepdims=True)
    return jnp.broadcast_to(one, blocks.shape).reshape(x.shape)


@jax.custom_jvp
def _expm1(x: jax.Array) -> jax.Array:
    """``exp(x) - 1`` of x <= 0, by its series where it is small."""
    series = functools.reduce(lambda sum, n: 1 + x * sum / n, range(9, 1, -1), jnp.ones_like(x)) * x
    return jnp.where(x > -0.5, series, jnp.exp(x) - 1)


@_expm1.defjvp
def _(primals, tangents):
    (x,), (along,) = primals, tangents
    return _expm1(x), jnp.exp(x) * along


@jax.custom_jvp
def inverse(between: jax.Array) -> jax.Array:
    """``(I + B)^-1`` of a matrix B below the diagonal, ``[C, C]``, float32.

    By substitution in leaves, and from two halves, ``-X_2 B_21 X_1``, above them: powers of B lose all digits where
    keys are alike.
    """
    length = len(between)
    place, leaf = _Places(length), min(LEAF, length)
    found = (place.row == place.col).astype(between.dtype)
    own = jnp.where(place.row // leaf == place.col // leaf, between, 0)
    for j in range(leaf - 1):
        column = jnp.sum(jnp.where(place.col % leaf == j, own, 0), 1, keepdims=True)
        found -= column * _picked(found, leaf, j)
    size = leaf
    while size < length:
        below = place.row // (2 * size) == place.col // (2 * size)
        across = jnp.where(below & (place.row // size != place.col // size), between, 0)
        found -= _product(_product(found, across), found)
        size *= 2
    return found


@inverse.defjvp
def _(primals, tangents):
    (between,), (along,) = primals, tangents
    found = inverse(between)
    return found, -_product(_product(found, along), found)
