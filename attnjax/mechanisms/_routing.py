"""Experts by the chunk: one for each stretch of tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Routing(NamedTuple):
    """Which expert each of C chunks goes to.

    Attributes:
        expert: ``[*B, C]``.
        probability: of the one chosen, ``[*B, C]``.
        load: the share of all chunks that each expert has, ``[E]``.
        balance_loss: E times the sum of shares times mean probabilities: 1 where loads are even, E where one has all.
    """

    expert: Int[Array, "*B C"]
    probability: Float[Array, "*B C"]
    load: Float[Array, " E"]
    balance_loss: Float[Array, ""]


def route_chunks(x: Float[Array, "*B T D"], router: Float[Array, "D E"], chunk_size: int) -> Routing:
    """One expert for each chunk, by the mean of its tokens: ``argmax softmax(mean(x) W)``.

    Gradients reach the router through the probabilities, of the experts chosen and of all in the balance loss.

    Source: Chaudhary and Browning, 2025, Hydra, arXiv 2508.15099; the loss: Fedus et al., 2021, Switch Transformers,
    arXiv 2101.03961. Deviation: from Hydra's abstract, which gives no equations.

    Args:
        x: tokens ``[*B, T, D]``; the last chunk may be shorter than the others.
        router: ``W [D, E]``.
        chunk_size: tokens in a chunk.

    Returns:
        A ``Routing``.

    Raises:
        ValueError: the chunk's size is not positive, or the router is of another width.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> routing = mechanisms.route_chunks(jnp.eye(2).repeat(3, 0), jnp.eye(2), chunk_size=3)
        >>> print(routing.expert, routing.load)
        [0 1] [0.5 0.5]
    """
    if router.shape[0] != x.shape[-1]:
        raise ValueError(f"router: got shape {router.shape}, want [D, E], D={x.shape[-1]}")
    totals = _chunks(x.astype(jnp.promote_types(x.dtype, jnp.float32)), chunk_size).sum(-2)
    sizes = _chunks(jnp.ones((x.shape[-2], 1), totals.dtype), chunk_size).sum(-2)
    means = totals / jnp.expand_dims(sizes, tuple(range(x.ndim - 2)))
    probabilities = jax.nn.softmax(jnp.einsum("...d,de->...e", means, router), -1)
    expert, experts = jnp.argmax(probabilities, -1), router.shape[1]
    chosen = jax.nn.one_hot(expert, experts, dtype=probabilities.dtype)
    every = tuple(range(expert.ndim))
    load = chosen.mean(every)
    return Routing(expert, (probabilities * chosen).sum(-1), load, experts * jnp.sum(load * probabilities.mean(every)))


def chunk_experts(
    x: Float[Array, "*B T D"],
    routing: Routing,
    function: Callable[[Any, Array], Array],
    parameters: Any,
    chunk_size: int,
) -> Float[Array, "*B T V"]:
    """Every chunk through its expert, times the probability of it: ``y_t = p_c f(parameters[expert_c], x_t)``.

    Source: Chaudhary and Browning, 2025, Hydra, arXiv 2508.15099; scaling: Fedus et al., 2021, Switch Transformers,
    arXiv 2101.03961.

    Args:
        x: tokens ``[*B, T, D]``.
        routing: of these tokens at this chunk size, from ``route_chunks``.
        function: ``f(parameters of one expert, tokens [C, D]) -> [C, V]``, token by token: the last chunk is padded.
        parameters: a pytree whose arrays have the experts as first axis.
        chunk_size: tokens in a chunk.

    Returns:
        ``[*B, T, V]``.

    Raises:
        ValueError: the routing is of another number of chunks.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> x = jnp.eye(2).repeat(3, 0)
        >>> routing = mechanisms.route_chunks(x, 100 * jnp.eye(2), chunk_size=3)
        >>> print(mechanisms.chunk_experts(x, routing, lambda a, x: a * x, jnp.array([1.0, 5.0]), chunk_size=3)[::3])
        [[1. 0.]
         [0. 5.]]
    """
    *batch, tokens, _ = x.shape
    chunks = _chunks(x, chunk_size)
    if routing.expert.shape != chunks.shape[:-2]:
        raise ValueError(
            f"routing: got experts of {routing.expert.shape} chunks, want {chunks.shape[:-2]}: of the same tokens and "
            f"chunk_size={chunk_size}"
        )
    flat = chunks.reshape(-1, *chunks.shape[-2:])
    own = jax.tree.map(lambda leaf: leaf[routing.expert.reshape(-1)], parameters)
    out = jax.vmap(function)(own, flat) * routing.probability.astype(x.dtype).reshape(-1, 1, 1)
    return out.reshape(*batch, -1, out.shape[-1])[..., :tokens, :]


def _chunks(x: Array, size: int) -> Array:
    """``[*B, C, size, D]``, filled up with zeros."""
    if size < 1:
        raise ValueError(f"chunk_size: got {size}, want at least 1")
    *batch, tokens, width = x.shape
    padding = [(0, 0)] * len(batch) + [(0, -tokens % size), (0, 0)]
    return jnp.pad(x, padding).reshape(*batch, -1, size, width)
