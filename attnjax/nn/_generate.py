"""Continuing a text, one token at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Key

from ._transformer import TransformerLM

RECURRENT = {"form": "recurrent"}


def generate(
    model: TransformerLM,
    tokens: Int[Array, "*B T"],
    length: int,
    *,
    temperature: float | int = 1.0,
    key: Key[Array, ""] | None = None,
) -> Int[Array, "*B L"]:
    """Tokens that follow: each is drawn from ``softmax(logits / temperature)``, or is the likeliest at temperature 0.

    The prompt is read in one pass; after it each token costs the same, from the layers' states: a matrix for each head
    of a linear-time mechanism, a cache of T + L places in softmax attention.

    Args:
        model: a language model; the masks of its softmax layers must be causal, and follow from positions.
        tokens: the prompt, at least one token.
        length: L, how many tokens to add.
        temperature: at least 0.
        key: random key, needed where the temperature is not 0.

    Returns:
        The added tokens.

    Raises:
        ValueError: the prompt or ``length`` is empty, the temperature is negative, or there is no key.
        NotImplementedError: a mask or a score has an array with an axis of queries.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = TransformerLM(16, 8, layers=1, heads=2, mixer="retention", rngs=nnx.Rngs(0))
        >>> generate(model, jnp.array([[1, 2, 3]]), 5, key=jax.random.key(0)).shape
        (1, 5)
    """
    if tokens.shape[-1] < 1 or length < 1:
        raise ValueError(f"tokens, length: got {tokens.shape[-1]} and {length} tokens, wanted at least one of each.")
    if not temperature >= 0:
        raise ValueError(f"temperature: got {temperature}, wanted at least 0.")
    if temperature and key is None:
        raise ValueError("key: got None, wanted a random key, or temperature=0.")
    graph, state = nnx.split(model)
    key = jax.random.key(0) if key is None else key
    return _generate(graph, state, tokens, key, jnp.float32(temperature), length)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _generate(graph: Any, state: Any, tokens: Array, key: Array, temperature: Array, length: int) -> Array:
    model = nnx.merge(graph, state)
    *batch, prompt = tokens.shape
    logits, held = model(tokens, state=model.empty(batch, prompt + length), return_state=True)

    def draw(key: Array, logits: Array) -> Array:
        drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1).astype(logits.dtype))
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits, -1))

    def step(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], Array]:
        token, held = carry
        logits, held = model(token[..., None], state=held, return_state=True, run=RECURRENT)
        token = draw(key, logits[..., 0, :]).astype(token.dtype)
        return (token, held), token

    keys = jax.random.split(key, length)
    token = draw(keys[0], logits[..., -1, :]).astype(tokens.dtype)
    _, drawn = jax.lax.scan(step, (token, held), keys[1:])
    return jnp.concatenate([token[..., None], jnp.moveaxis(drawn, 0, -1)], -1)
