"""Long sequences in float32, decays from next to nothing to one: values and gradients beside float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear

LENGTH, WIDTH = 65536, 16
LOGS = {"1": 0.0, "1 - 1e-6": np.log1p(-1e-6), "0.99": np.log(0.99), "0.1": np.log(0.1), "1e-6": np.log(1e-6)}


@functools.cache
def drawn(name: str):
    """q, k, v and log decays, as float64 numbers that float32 holds."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, LENGTH, 1, WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
    decay = np.full((LENGTH, 1, WIDTH), LOGS.get(name, 0.0))
    if name == "wild":
        decay = np.log(10.0) * rng.uniform(-6, 0, decay.shape)
    return [np.asarray(x, np.float32) for x in (q, k, v, decay)]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chunked", "recurrent"])
@pytest.mark.parametrize("by", ["token", "feature"])
@pytest.mark.parametrize("name", [*LOGS, "wild"])
def test_long_sequences(name, by, form):
    """Errors of outputs and of gradients by everything: at most 1e-3 of the greatest, 1e-4 as measured."""
    q, k, v, decay = drawn(name)
    decay = decay[..., 0] if by == "token" else decay
    weights = np.random.default_rng(1).standard_normal((LENGTH, 1, WIDTH)).astype(np.float32)

    def of(dtype):
        arrays = [jnp.asarray(x, dtype) for x in (q, k, v, decay)]

        @jax.jit
        def both(*arrays):
            run = lambda q, k, v, decay: linear.attend(q, k, v, log_decay=decay, form=form)
            out, pull = jax.vjp(run, *arrays)
            return out, *pull(jnp.asarray(weights, dtype))

        return both(*arrays)

    with jax.enable_x64(True):
        want = [np.asarray(x) for x in of(jnp.float64)]
    got = [np.asarray(x) for x in of(jnp.float32)]
    errors = [float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)) for a, b in zip(got, want, strict=True)]
    print(name, by, form, errors)
    assert all(np.isfinite(x).all() for x in got)
    assert max(errors) < 1e-3


@pytest.mark.parametrize("form", ["chunked", "recurrent", "scan"])
def test_large_logits_of_writes(form):
    """Of +-80, values and gradients: finite, and those of float64."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 130, 1, 8))

    def of(dtype):
        def loss(q, k, v):
            return (linear.light_net(q, 80 * k, v, form=form) * jnp.cos(v)).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*(jnp.asarray(x, dtype) for x in (q, k, v)))

    with jax.enable_x64(True):
        want = jax.tree.map(np.asarray, of(jnp.float64))
    got = jax.tree.map(np.asarray, of(jnp.float32))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.isfinite(a).all()
        assert np.max(np.abs(a - b)) <= 1e-4 * max(1.0, np.max(np.abs(b)))


@pytest.mark.parametrize("size", [64, 256])
def test_keys_that_are_alike(size):
    """The triangle is solved by substitution: with equal unit keys and full strength powers of it would explode."""
    k = np.ones((512, 1, 16)) / 4 + 0.01 * np.random.default_rng(0).standard_normal((512, 1, 16))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v = np.random.default_rng(1).standard_normal((512, 1, 16))
    for strength in (1.0, 2.0):
        of = lambda dtype, form, s=strength: linear.delta_rule(
            *(jnp.asarray(x, dtype) for x in (k, k, v)), jnp.full((512, 1), s, dtype), form=form, chunk_size=size
        )
        with jax.enable_x64(True):
            want = np.asarray(of(jnp.float64, "recurrent"))
        got = np.asarray(of(jnp.float32, "chunked"))
        assert np.max(np.abs(got - want)) < 2e-4 * np.max(np.abs(want)), strength


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1.0, 1 - 1e-6, 0.99, 1e-6, "wild"])
def test_corrections_over_a_long_sequence(decay):
    """The delta rule over 65,536 tokens in float32, values and gradients, with strengths up to 2."""
    length, rng = 65536, np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, length, 1, 16))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta, weights = rng.uniform(0, 2, (length, 1)), rng.standard_normal((length, 1, 16))
    log = rng.uniform(np.log(1e-6), 0, (length, 1)) if decay == "wild" else np.full((length, 1), np.log(decay))

    def of(dtype):
        *arrays, cotangent = (jnp.asarray(x, dtype) for x in (q, k, v, beta, log, weights))
        out, pull = jax.vjp(linear.delta_rule, *arrays)
        return jax.tree.map(np.asarray, (out, pull(cotangent)))

    with jax.enable_x64(True):
        want = of(jnp.float64)
    for a, b in zip(jax.tree.leaves(of(jnp.float32)), jax.tree.leaves(want), strict=True):
        assert np.max(np.abs(a - b)) < 1e-4 * np.max(np.abs(b))
