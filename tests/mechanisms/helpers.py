"""What tests of mechanisms share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""``jit``, for programs that run once and are not worth optimizing."""


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def traced(tree):
    return jax.tree.map(jnp.asarray, tree)


def assert_near(got, want, bound=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def influence(function: Callable, x: jax.Array) -> np.ndarray:
    """How far each token of the input moves each of the output, ``[T, T]``."""
    return np.asarray(jnp.abs(once(jax.jacrev(function))(x)).max((1, 3)))


def trained(loss: Callable, parameters: Any, steps: int) -> Any:
    """Parameters after steps of Adam on ``loss(parameters, key)``, in float32."""
    parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters)

    def adam(p, m, v, g):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        return p - 0.02 * m / (jnp.sqrt(v) + 1e-8), m, v

    def step(carry, key):
        gradient = jax.grad(loss)(carry[0], key)
        found = jax.tree.map(adam, *carry, gradient)
        return jax.tree.transpose(jax.tree.structure(gradient), None, found), None

    nothing = jax.tree.map(jnp.zeros_like, parameters)
    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda *start: jax.lax.scan(step, start, keys)[0][0])(parameters, nothing, nothing)
