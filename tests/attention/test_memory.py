"""Temporary memory of ``blocks`` grows as T, read from compiled programs; nothing is executed."""

import functools

import jax
import jax.numpy as jnp
import pytest

from attnjax import attend, masks, scores, statistics

SHORT, LONG = 2048, 8192
LIMIT = 4.4
"""Lengths grow 4 times; a T x S array would grow 16 times."""
STATISTICS = (
    "logsumexp",
    "entropy",
    "max_logit",
    "key_mass",
    "participation_ratio",
    statistics.mass_on(masks.sinks(4)),
)


def call(q, k, v, slopes, ids, implementation="blocks"):
    mask = masks.causal() & masks.window(512) & masks.segments(ids)
    return attend(q, k, v, mask=mask, score=scores.alibi(slopes), implementation=implementation, stats=STATISTICS)


def loss(*arrays):
    """Of the output and of every statistic, so that all of them are differentiated."""
    output, found = call(*arrays)
    return (output**2).sum() + sum((jnp.where(jnp.isfinite(x), x, 0) ** 2).sum() for x in found.values())


gradient = jax.grad(loss, (0, 1, 2, 3))


def product(q, k, v, slopes, ids):
    """A Hessian-vector product."""
    moving = lambda *x: gradient(*x, ids)
    return jax.jvp(moving, (q, k, v, slopes), (q, k, v, slopes))


@functools.cache
def temporary_bytes(function, length: int) -> int:
    array = jax.ShapeDtypeStruct((length, 2, 16), jnp.float32)
    others = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((length,), jnp.int32)
    compiled = jax.jit(function).lower(array, array, array, *others).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("function", [call, gradient, product], ids=["forward", "gradient", "hvp"])
def test_temporary_memory_is_linear(function):
    short, long = temporary_bytes(function, SHORT), temporary_bytes(function, LONG)
    print(f"{short:,} bytes at {SHORT}, {long:,} at {LONG}: {long / short:.2f} times")
    assert long <= LIMIT * short
    assert long < LONG**2, "less than one byte for each entry of the map"


def test_a_map_would_be_seen():
    """The same figure of the dense form grows with the map: the limit above can be exceeded."""
    dense = functools.partial(call, implementation="dense")
    assert temporary_bytes(dense, LONG) > 10 * temporary_bytes(dense, SHORT)
