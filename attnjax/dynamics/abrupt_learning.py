"""A one-layer Transformer that writes sums over a moving window, and what it does while its loss stands still.

Pre-norm, one head, learned positions, GELU perceptron of four times the width; attention is linear:

    y_t = sum_{s <= t} A_ts v_s,   A_ts = q_t . k_s / sqrt(E)

so that A has any sign and no normalization. While training, the entries of A that the task needs can be multiplied by a
constant, which shortens or lengthens the plateau.

Source: Gopalani and Hu, 2025, "What Happens During the Loss Plateau? Understanding Abrupt Learning in Transformers",
NeurIPS 2025, arXiv 2506.13688, and the authors' code, pulkitgopalani/tf-loss-plateau (src/model_linear.py,
src/train_mws.py).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from attnjax.dynamics.softmax_attention import Optimizer


class Params(NamedTuple):
    """Weights; each of the maps is (matrix `[in, out]`, bias), each of the norms is (scale, bias).

    Attributes:
        tokens: Embedding of tokens.
        positions: Embedding of positions.
        qkv: Queries, keys and values, from the first norm.
        projection: Of the attended values.
        hidden: The perceptron's first map, from the second norm.
        output: Its second.
        norms: Before attention, before the perceptron, before the head.
        head: To logits.
    """

    tokens: Float[Array, "V E"]
    positions: Float[Array, "T E"]
    qkv: tuple[Float[Array, "E 3E"], Float[Array, " 3E"]]
    projection: tuple[Float[Array, "E E"], Float[Array, " E"]]
    hidden: tuple[Float[Array, "E 4E"], Float[Array, " 4E"]]
    output: tuple[Float[Array, "4E E"], Float[Array, " E"]]
    norms: tuple[tuple[Float[Array, " E"], Float[Array, " E"]], ...]
    head: Float[Array, "E V"]


class State(NamedTuple):
    """What training carries from step to step."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the loss over all positions before it."""

    loss: Float[Array, ""]


class Seen(NamedTuple):
    """What a forward pass shows.

    Attributes:
        logits: Of the next token.
        attention: A, with zeros above the diagonal.
        hidden: What the head reads.
    """

    logits: Float[Array, "B T V"]
    attention: Float[Array, "B T T"]
    hidden: Float[Array, "B T E"]


def init(key: Key[Array, ""], *, vocabulary: int, length: int, width: int, optimizer: Optimizer) -> State:
    """Normal weights of standard deviation 0.02, projections back to the residual stream 0.02 / sqrt(2), no biases.

    Args:
        key: Random key.
        vocabulary: V.
        length: T, the most positions.
        width: E.
        optimizer: What `step` will use.

    Returns:
        State at step zero.

    Raises:
        ValueError: A size below one.

    Example:
        >>> import optax
        >>> init(jax.random.key(0), vocabulary=18, length=33, width=8, optimizer=optax.adam(1e-4)).params.head.shape
        (8, 18)

    Source: the authors' code (src/model_linear.py), arXiv 2506.13688.
    """
    for name, size in (("vocabulary", vocabulary), ("length", length), ("width", width)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    keys = iter(jax.random.split(key, 7))
    normal = lambda *shape, scale=0.02: scale * jax.random.normal(next(keys), shape)
    affine = lambda inputs, outputs, scale=0.02: (normal(inputs, outputs, scale=scale), jnp.zeros(outputs))
    back = 0.02 / math.sqrt(2)
    params = Params(
        tokens=normal(vocabulary, width),
        positions=normal(length, width),
        qkv=affine(width, 3 * width),
        projection=affine(width, width, back),
        hidden=affine(width, 4 * width),
        output=affine(4 * width, width, back),
        norms=((jnp.ones(width), jnp.zeros(width)),) * 3,
        head=normal(width, vocabulary),
    )
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def forward(params: Params, tokens: Int[Array, "B T"], attention_factors: Float[Array, "T T"] | None = None) -> Seen:
    """Logits of every next token, and what they are made of.

    Args:
        params: Weights.
        tokens: At most as many positions as there are embeddings.
        attention_factors: What the entries of A are multiplied by; None is ones.

    Returns:
        Logits, attention and hidden states.

    Example:
        >>> import optax
        >>> state = init(jax.random.key(0), vocabulary=18, length=33, width=8, optimizer=optax.adam(1e-4))
        >>> forward(state.params, jnp.zeros((2, 9), jnp.int32)).attention.shape
        (2, 9, 9)

    Source: the authors' code (src/model_linear.py, src/model_linear_att_scale.py), arXiv 2506.13688.
    """
    length, width = tokens.shape[1], params.tokens.shape[1]
    x = params.tokens[tokens] + params.positions[None, :length]
    q, k, v = jnp.split(_affine(_normalized(x, params.norms[0]), params.qkv), 3, axis=-1)
    scores = jnp.einsum("bte,bse->bts", q, k) / jnp.sqrt(width)
    kept = jnp.tril(jnp.ones((length, length), bool))
    attention = jnp.where(kept[None], scores, 0)
    if attention_factors is not None:
        attention = attention * attention_factors[None, :length, :length]
    x = x + _affine(jnp.einsum("bts,bse->bte", attention, v), params.projection)
    x = x + _affine(jax.nn.gelu(_affine(_normalized(x, params.norms[1]), params.hidden)), params.output)
    hidden = _normalized(x, params.norms[2])
    return Seen(jnp.einsum("bte,ev->btv", hidden, params.head), attention, hidden)


def _affine(x: Array, weights: tuple[Array, Array]) -> Array:
    matrix, bias = weights
    return jnp.einsum("bte,ef->btf", x, matrix) + bias[None, None]


def _normalized(x: Array, norm: tuple[Array, Array]) -> Array:
    scale, bias = norm
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5)
    return centered / deviation * scale[None, None] + bias[None, None]


def loss(
    params: Params, tokens: Int[Array, "B T"], attention_factors: Float[Array, "T T"] | None = None, *, start: int = 0
) -> Float[Array, ""]:
    """Cross-entropy of the next token, in nats, averaged over the positions from `start` on.

    Args:
        params: Weights.
        tokens: From `attnjax.tasks.window_sums`.
        attention_factors: See `forward`.
        start: First position from which the next token counts; L for the sums alone.

    Returns:
        The loss.

    Example:
        >>> import optax
        >>> state = init(jax.random.key(0), vocabulary=18, length=33, width=8, optimizer=optax.adam(1e-4))
        >>> print(loss(state.params, jnp.zeros((2, 9), jnp.int32)).round(1))  # ln 18
        2.9

    Source: the authors' code (src/train_mws.py), arXiv 2506.13688.
    """
    log_p = jax.nn.log_softmax(forward(params, tokens[:, :-1], attention_factors).logits, axis=-1)
    return -jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[:, start:].mean()


def step(
    state: State,
    tokens: Int[Array, "B T"],
    optimizer: Optimizer,
    attention_factors: Float[Array, "T T"] | None = None,
) -> tuple[State, Info]:
    """One step of training on the next token at every position.

    Args:
        state: From `init` or the previous step.
        tokens: A fresh batch.
        optimizer: The one that `init` was given.
        attention_factors: See `forward`.

    Returns:
        The next state, and the loss at the given one.

    Example:
        >>> import optax
        >>> from attnjax.tasks import window_sums
        >>> adam = optax.adam(1e-3)
        >>> state = init(jax.random.key(0), vocabulary=18, length=9, width=8, optimizer=adam)
        >>> tokens = window_sums(jax.random.key(1), batch=8, length=4)
        >>> after, info = step(state, tokens, adam)
        >>> bool(loss(after.params, tokens) < info.loss)
        True
    """
    value, gradient = jax.value_and_grad(loss)(state.params, tokens, attention_factors)
    updates, carried = optimizer.update(gradient, state.optimizer)
    params = jax.tree.map(jnp.add, state.params, updates)
    return State(params, carried, state.step + 1), Info(value)


def needed(length: int, window: int = 2) -> Bool[Array, "T T"]:
    """The entries of A that the task needs: the query that writes y_i, at position L + i - 1, and the terms of y_i.

    Args:
        length: L.
        window: Terms in a sum.

    Returns:
        True where needed, over the T = 2 L input positions.

    Example:
        >>> print(needed(2)[2:, :2].astype(int))
        [[1 0]
         [1 1]]

    Source: the authors' code (src/train_mws.py), arXiv 2506.13688.
    """
    row, column = jnp.arange(length)[:, None], jnp.arange(length)[None]
    copied = (row < window - 1) & (row == column)
    summed = (row >= window - 1) & (column <= row) & (column > row - window)
    return jnp.zeros((2 * length, 2 * length), bool).at[length:, :length].set(copied | summed)


def write(params: Params, tokens: Int[Array, "B T"], length: int) -> Int[Array, "B L"]:
    """The sums that the model writes itself, always its likeliest token.

    Args:
        params: Weights.
        tokens: From `attnjax.tasks.window_sums`; of these the numbers and the separator are read.
        length: L.

    Returns:
        Tokens written.

    Example:
        >>> import optax
        >>> state = init(jax.random.key(0), vocabulary=18, length=9, width=8, optimizer=optax.adam(1e-3))
        >>> write(state.params, jnp.zeros((2, 9), jnp.int32), 4).shape
        (2, 4)

    Source: the authors' code (src/model_linear.py, generate), arXiv 2506.13688.
    """

    def one(index, tokens):
        logits = forward(params, tokens[:, :-1]).logits
        likeliest = jnp.argmax(jax.lax.dynamic_index_in_dim(logits, index, axis=1, keepdims=False), axis=-1)
        return jax.lax.dynamic_update_index_in_dim(tokens, likeliest.astype(tokens.dtype), index + 1, axis=1)

    return jax.lax.fori_loop(length, 2 * length, one, tokens)[:, length + 1 :]


def attention_progress(attention: Float[Array, "B T T"], where: Bool[Array, "T T"]) -> Float[Array, ""]:
    """Share of |A| of the rows that write sums that lies on needed entries, averaged over sequences.

    Args:
        attention: A, T = 2 L input positions.
        where: From `needed`.

    Returns:
        Between 0 and 1.

    Example:
        >>> print(attention_progress(jnp.ones((1, 4, 4)), needed(2)))  # 3 of 8 entries
        0.375

    Source: the authors' code (src/train_mws.py), arXiv 2506.13688.
    """
    rows = jnp.abs(attention[:, attention.shape[1] // 2 :])
    kept = jnp.where(where[None, where.shape[0] // 2 :], rows, 0)
    return (kept.sum(axis=(1, 2)) / rows.sum(axis=(1, 2))).mean()


def collapse(hidden: Float[Array, "B L E"]) -> Float[Array, ""]:
    """Mean cosine between the hidden states of different positions.

    Args:
        hidden: Of the positions to compare.

    Returns:
        Between -1 and 1; 1 where all are alike.

    Example:
        >>> print(collapse(jnp.ones((1, 3, 2))).round(3))
        1.0

    Source: the authors' code (src/train_mws.py) [cosine similarity of hidden states], arXiv 2506.13688.
    """
    n = hidden.shape[1]
    unit = hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
    total = jnp.sum(unit.sum(axis=1) ** 2, axis=-1)  # the sum over all pairs, each position with itself included
    return ((total - n) / (n * (n - 1))).mean()
