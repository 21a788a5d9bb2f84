"""Memories that are trained while they are read, one draw of each: learning curves, outliers, chunks of gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import linear
from attnjax.linear import memory_theory as theory
from experiments.memory_capacity.storing import unit


def curves(key: jax.Array, features: int, steps: int, rate: float, forget: float) -> jax.Array:
    """Relative squared error at fresh queries after each token: of a first linear map, then of another ``[2 T]``."""
    weights_key, k_key, q_key = jax.random.split(key, 3)
    weights = jax.random.normal(weights_key, (2, features, 4))
    now = jnp.repeat(weights, steps, axis=0)
    k, q = unit(k_key, 2 * steps, 1, features), unit(q_key, 2 * steps, 1, features)
    value = lambda x: jnp.einsum("tkh,thv->tkv", x, now)
    number = lambda x: jnp.full((2 * steps, 1), x)
    read: Any = linear.titans(q, k, value(k), number(rate), None, number(forget))
    return jnp.sum((read - value(q)) ** 2, (1, 2)) / 4  # of unit queries, of 4 values of unit variance


def curve_law(steps: int, features: int, rate: float, forget: float) -> np.ndarray:
    """What theory says of ``curves`` ``[2 T]``."""
    first = theory.descent_curve(steps, features, rate, forget)
    along = -1.0  # the part of the error along what is learned
    for _ in range(steps):
        along = (1 - forget - rate / features) * along - forget
    held = first[-1] + 2 * along + 1  # squared length of the memory
    second = theory.descent_curve(steps, features, rate, forget, before=held)
    return np.concatenate([first[1:], second[1:]])


def outliers(
    key: jax.Array, features: int, steps: int, rate: float, threshold: float, share: float, size: float
) -> dict[str, jax.Array]:
    """Relative squared error of a linear map learned from tokens of which a share is wild, by two losses, and from the
    same tokens without ``[2]``."""
    weights_key, k_key, where_key, wild_key = jax.random.split(key, 4)
    weights = jax.random.normal(weights_key, (features, features))
    k = unit(k_key, steps, 1, features)
    clean = k @ weights
    wild = jax.random.bernoulli(where_key, share, (steps, 1, 1)) * jax.random.normal(wild_key, clean.shape)
    number = lambda x: jnp.full((steps, 1), x)

    def error(v, threshold):
        _, state = linear.yaad(k, k, v, number(rate), number(threshold), return_state=True)
        return jnp.sum((state.memory[0] - weights) ** 2) / jnp.sum(weights**2)

    of = jax.vmap(jax.vmap(error, (None, 0)), (0, None))(
        jnp.stack([clean + size * wild, clean]), jnp.array([jnp.inf, threshold])
    )
    return {"squares": of[:, 0], "huber": of[:, 1]}


def chunks(key: jax.Array, features: int, length: int, sizes: tuple[int, ...], rate: float) -> jax.Array:
    """Distance between what a perceptron memory reads with gradients before each chunk and before each token, over the
    length of the latter, for each size of chunks."""
    params_key, map_key, k_key = jax.random.split(key, 3)
    params = linear.mlp_memory_init(params_key, heads=1, features=features, hidden=4 * features, width=features)
    k = unit(k_key, length, 1, features)
    v = k @ jax.random.normal(map_key, (features, features))
    run: Any = functools.partial(linear.neural_memory, k, k, v, jnp.full((length, 1), rate), params=params)
    exact = run(chunk_size=1)
    return jnp.stack([jnp.linalg.norm(run(chunk_size=size) - exact) for size in sizes]) / jnp.linalg.norm(exact)
