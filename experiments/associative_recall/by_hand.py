"""Attention that recalls by construction."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax import attend, masks
from attnjax.tasks import IGNORED, multi_query_recall

SHARPNESS = 30.0


def answers(tokens: Int[Array, "B T"], embedding: Float[Array, "A D"]) -> Int[Array, "B T"]:
    """What two layers of attention say at every position.

    The first copies the previous token's embedding x into a second slot; in the second layer a token looks for itself
    in the second slot, and so finds the value that followed it, which it reads off the first slot:

        y_t = x_{t-1},    o_t = sum_{s <= t} softmax_s(c <x_t, y_s>) x_s,    answer_t = argmax_a <o_t, x_a>.

    Args:
        tokens: with fillers of 0.
        embedding: unit vectors, one for each token.
    """
    x = embedding[tokens][:, :, None]  # one head
    previous = masks.window(1) & masks.causal(offset=-1)
    y = attend(jnp.zeros_like(x), jnp.zeros_like(x), x, mask=previous)
    o = attend(x, y, x, mask=masks.causal(), scale=SHARPNESS)
    return jnp.argmax(jnp.einsum("btnd,ad->bta", o, embedding), -1)


def accuracy(width: int, key: Array, *, vocabulary: int, length: int, pairs: int, batch: int) -> float:
    """Share of questions that are answered, with random embeddings."""
    of_embedding, of_task = jax.random.split(key)
    embedding = jax.random.normal(of_embedding, (vocabulary, width))
    embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
    sizes = {"length": length, "pairs": pairs, "vocabulary": vocabulary, "random_fillers": False}
    tokens, targets = multi_query_recall(of_task, batch=batch, **sizes)
    asked = np.asarray(targets) != IGNORED
    return float(np.mean((np.asarray(answers(tokens, embedding)) == targets)[asked]))
