"""How far attention in low precision is from the truth, tiled and untiled, by emulation on any machine.

One head, computed in float32 with every intermediate rounded to a narrower type as soon as it exists (products of
matrices: after their sum, as matrix units do). The tiled form is the fold of softmax written out::

    lift(scores, values, m)   P = exp(scores - m);  (m, sum_s P, P V)
    combine(a, b)             m = max(m_a, m_b);    (m, sum of exp(m_i - m) l_i, sum of exp(m_i - m) o_i)
    finalize(m, l, o)         o / l

and the untiled one is softmax, then a product. Both are held against float64.

Source: Golden et al., 2024, Is Flash Attention Stable?, arXiv 2405.02803. Deviation: there
a GPU runs the types; here their rounding is emulated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from attnjax.attention import normalizers

Rounding = Callable[[jax.Array], jax.Array]
Reference = Callable[[jax.Array], jax.Array]
RealArray = Float[Array, "..."] | Float[np.ndarray, "..."]


class State(NamedTuple):
    """What the fold carries for each query: its log scale, the mass and the sum of values at that scale."""

    scale: jax.Array
    mass: jax.Array
    total: jax.Array


class Deviation(NamedTuple):
    """Distances between an output and the golden one.

    Attributes:
        max_abs: greatest absolute difference.
        rms: root of the mean squared difference.
        wasserstein: 1-Wasserstein distance between the two sets of entries, ``mean |sort(got) - sort(golden)|``.
        mean_signed: mean difference, got minus golden: a bias, where it is not 0.
    """

    max_abs: float
    rms: float
    wasserstein: float
    mean_signed: float


class Setting(NamedTuple):
    """One run of a sweep.

    Attributes:
        length: number of keys.
        tile: keys in a tile; None is untiled.
        accumulator: the type of the running state; of an untiled run, that of its sums.
        found: the deviation from float64.
    """

    length: int
    tile: int | None
    accumulator: str
    found: Deviation


def _rounding(dtype: Any) -> Rounding:
    """Rounding of float32 to the precision and range of a narrower type, to nearest, ties to even."""
    kind = jnp.finfo(dtype)
    if kind.bits >= 32:
        return lambda x: x
    return functools.partial(lax.reduce_precision, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)


def lift(scores: jax.Array, v: jax.Array, scale: jax.Array, values: Rounding, sums: Rounding) -> State:
    """The state of one tile of keys, at log scale ``scale``."""
    p = values(jnp.exp(values(scores - scale[:, None])))
    return State(scale, sums(p.sum(axis=1)), sums(p @ v))


def combine(a: State, b: State, sums: Rounding) -> State:
    """The state of the keys of both, at the greater log scale."""
    scale = jnp.maximum(a.scale, b.scale)
    by_a, by_b = (sums(jnp.exp(sums(x.scale - scale))) for x in (a, b))
    mass = sums(sums(a.mass * by_a) + sums(b.mass * by_b))
    total = sums(sums(a.total * by_a[:, None]) + sums(b.total * by_b[:, None]))
    return State(scale, mass, total)


def finalize(state: State, values: Rounding) -> jax.Array:
    """The output of each query; 0 where nothing is left of its mass."""
    seen = state.mass > 0
    return values(jnp.where(seen[:, None], state.total / jnp.where(seen, state.mass, 1)[:, None], 0))


def _scores(q: jax.Array, k: jax.Array, values: Rounding) -> jax.Array:
    return values(values(q @ k.T) * (q.shape[-1] ** -0.5))


def _tiled(q, k, v, tile: int, reference: Reference, values: Rounding, sums: Rounding) -> jax.Array:
    def visit(state: State, block) -> tuple[State, None]:
        scores = _scores(q, block[0], values)
        scale = values(jnp.maximum(state.scale, reference(scores)))
        return combine(state, lift(scores, block[1], scale, values, sums), sums), None

    full = k.shape[0] - k.shape[0] % tile
    blocks = tuple(x[:full].reshape(-1, tile, x.shape[-1]) for x in (k, v))
    rows = q.shape[0]
    state = State(jnp.full(rows, -jnp.inf, q.dtype), jnp.zeros(rows, q.dtype), jnp.zeros((rows, v.shape[-1]), q.dtype))
    state, _ = lax.scan(visit, state, blocks)
    if full < k.shape[0]:
        state, _ = visit(state, (k[full:], v[full:]))
    return finalize(state, values)


def _untiled(q, k, v, reference: Reference, values: Rounding, sums: Rounding) -> jax.Array:
    scores = _scores(q, k, values)
    p = values(jnp.exp(values(scores - values(reference(scores))[:, None])))
    weights = values(p / sums(p.sum(axis=1, keepdims=True)))
    return values(weights @ v)


@functools.partial(jax.jit, static_argnames=("tile", "dtype", "accumulator", "reference"))
def _emulate(q, k, v, *, tile: int | None, dtype: str, accumulator: str, reference: Reference) -> jax.Array:
    values, sums = _rounding(dtype), _rounding(accumulator)
    q, k, v = (values(x.astype(jnp.float32)) for x in (q, k, v))
    if tile is None:
        return _untiled(q, k, v, reference, values, sums)
    return _tiled(q, k, v, tile, reference, values, sums)


def emulate(
    q: Float[Array, "T H"],
    k: Float[Array, "S H"],
    v: Float[Array, "S V"],
    *,
    tile: int | None = None,
    dtype: Any = jnp.bfloat16,
    accumulator: Any = None,
    reference: Reference | None = None,
) -> Float[Array, "T V"]:
    """Softmax attention of one head with every intermediate rounded, tiled over keys or not.

    Args:
        q: queries, rounded to ``dtype`` first, as are k and v.
        k: keys.
        v: values.
        tile: keys in a tile of the online softmax; None is the untiled form. Any size, the last tile may be shorter.
        dtype: type of scores, exponentials, weights and output, no wider than float32.
        accumulator: type of the running state (mass, sum of values, their factors); ``dtype`` by default.
        reference: the log scale at which a tile ``[T, tile]`` of scores is summed, ``[T]``; the row's maximum by
            default, or ``normalizers.softmax(tie_factor=2.0).reference``.

    Returns:
        The output, float32 numbers that fit into ``dtype``.

    Raises:
        ValueError: ``tile`` is not positive.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 64, 16))
    >>> out = emulate(q, k, v, tile=16)
    >>> bool((out == out.astype(jnp.bfloat16)).all())
    True
    """
    if tile is not None and tile < 1:
        raise ValueError(f"tile={tile}: want a number of keys from 1 up, or None for the untiled form")
    kind = jnp.dtype(dtype).name
    accumulated = kind if accumulator is None else jnp.dtype(accumulator).name
    rule = _ROW_MAXIMUM if reference is None else reference
    return _emulate(q, k, v, tile=tile, dtype=kind, accumulator=accumulated, reference=rule)


_ROW_MAXIMUM: Reference = normalizers.softmax().reference


def golden(q: RealArray, k: RealArray, v: RealArray) -> Float[np.ndarray, "T V"]:
    """Softmax attention of one head in float64, by NumPy, whatever JAX's setting.

    >>> import jax.numpy as jnp
    >>> golden(jnp.zeros((1, 2)), jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]])).tolist()
    [[2.0]]
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.T / np.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p @ v / p.sum(axis=1, keepdims=True)


def compare(got: RealArray, want: RealArray) -> Deviation:
    """Distances between an output and the golden one of the same shape.

    Raises:
        ValueError: the shapes differ.

    >>> import numpy as np
    >>> compare(np.array([1.0, 2.0]), np.array([2.0, 1.0]))
    Deviation(max_abs=1.0, rms=1.0, wasserstein=0.0, mean_signed=0.0)
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"got: shape {got.shape}, want that of the golden output, {want.shape}")
    difference = got - want
    transport = np.abs(np.sort(got, axis=None) - np.sort(want, axis=None))
    return Deviation(
        max_abs=float(np.abs(difference).max()),
        rms=float(np.sqrt((difference**2).mean())),
        wasserstein=float(transport.mean()),
        mean_signed=float(difference.mean()),
    )


def deviation(
    q: Float[Array, "T H"],
    k: Float[Array, "S H"],
    v: Float[Array, "S V"],
    *,
    tile: int | None = None,
    dtype: Any = jnp.bfloat16,
    accumulator: Any = None,
    reference: Reference | None = None,
) -> Deviation:
    """How far rounded attention is from float64, both from the same inputs (rounded to ``dtype``).

    Args:
        q, k, v, tile, dtype, accumulator, reference: as in ``emulate``.

    Returns:
        The four distances.

    Raises:
        ValueError: ``tile`` is not positive.

    Source: Golden et al., 2024, Is Flash Attention Stable?, section IV, arXiv 2405.02803.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1024, 16))
    >>> tiled, untiled = deviation(q, k, v, tile=16), deviation(q, k, v)
    >>> tiled.rms > untiled.rms
    True
    """
    got = emulate(q, k, v, tile=tile, dtype=dtype, accumulator=accumulator, reference=reference)
    values = _rounding(dtype)
    return compare(got, golden(*(values(x.astype(jnp.float32)) for x in (q, k, v))))


def sweep(
    key: Key[Array, ""],
    *,
    lengths: Sequence[int],
    tiles: Sequence[int | None],
    accumulators: Sequence[Any] = (jnp.bfloat16, jnp.float32),
    queries: int = 128,
    width: int = 64,
    dtype: Any = jnp.bfloat16,
) -> list[Setting]:
    """Deviations over lengths, tile sizes and accumulators, on independent standard normal q, k and v.

    Args:
        key: of the inputs; all settings of one length share them.
        lengths: numbers of keys.
        tiles: keys in a tile; None is untiled.
        accumulators: types of the running state.
        queries: number of queries.
        width: head dimension, of values too.
        dtype: as in ``emulate``.

    Returns:
        One ``Setting`` for each combination, lengths slowest.

    >>> import jax
    >>> [found.tile for found in sweep(jax.random.key(0), lengths=[64], tiles=[None, 16], accumulators=["bfloat16"])]
    [None, 16]
    """
    found = []
    for length in lengths:
        keys = jax.random.split(jax.random.fold_in(key, length), 3)
        rows = (queries, length, length)
        q, k, v = (jax.random.normal(one, (n, width)) for one, n in zip(keys, rows, strict=True))
        for accumulator in accumulators:
            for tile in tiles:
                measured = deviation(q, k, v, tile=tile, dtype=dtype, accumulator=accumulator)
                found.append(Setting(length, tile, jnp.dtype(accumulator).name, measured))
    return found
