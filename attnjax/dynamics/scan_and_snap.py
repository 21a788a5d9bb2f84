"""The one-layer transformer of Scan and Snap: self-attention that learns which context tokens tell the next one.

Tokens are one-hot. The last token m attends to the context with logits z[m, l] that depend on tokens only, the weighted
bag of context tokens is normalized, and a decoder reads the next token from it:

    c_l = n_l exp(z[m, l]) / sum_k n_k exp(z[m, k]),   n_l = how often l stands in the context
    f = c / |c|,   logits = Y^T f,   loss = -log softmax(logits)[next]

Only the counts n matter, so a batch is made of counts; the law of a class in place of counts is the limit of infinitely
long contexts, in which theory speaks.

Source: Tian, Wang, Chen, Du, 2023, "Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer
Transformer", NeurIPS 2023, arXiv 2305.16380.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attnjax.tasks import Sequences, TokenClasses


class Params(NamedTuple):
    """Weights of the layer.

    Attributes:
        y: Decoder; row l is what context token l says about the next token.
        z: Attention logits; row m is what the last token m attends to.
    """

    y: Float[Array, "M M"]
    z: Float[Array, "M M"]


class State(NamedTuple):
    """What SGD with momentum carries from step to step."""

    params: Params
    velocity: Params
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the batch loss before it."""

    loss: Float[Array, ""]


class Batch(NamedTuple):
    """Sequences as the layer sees them.

    Attributes:
        counts: How often each token stands in the context, or how likely.
        last: The last token.
        next: The next one.
    """

    counts: Float[Array, "B M"]
    last: Int[Array, " B"]
    next: Int[Array, " B"]


def count(drawn: Sequences, vocabulary: int) -> Batch:
    """Sequences as counts.

    Args:
        drawn: From `attnjax.tasks.sequences`.
        vocabulary: M.

    Returns:
        The batch.

    Example:
        >>> print(count(Sequences(jnp.array([[0, 2, 2]]), jnp.array([3]), jnp.array([1])), 4).counts)
        [[1. 0. 2. 0.]]
    """
    counts = jax.vmap(lambda row: jnp.zeros(vocabulary).at[row].add(1.0))(drawn.context)
    return Batch(counts, drawn.last, drawn.next)


def population(classes: TokenClasses) -> Batch:
    """One infinitely long sequence of each class; the mean over it is the expectation.

    Args:
        classes: The distribution of sequences.

    Returns:
        A batch whose counts are the classes' laws.

    Example:
        >>> from attnjax.tasks import token_classes
        >>> population(token_classes()).counts.shape
        (2, 34)

    Source: Tian, Wang, Chen, Du, 2023, Lemma 3 [long sequences], arXiv 2305.16380.
    """
    return Batch(*classes)


def init(vocabulary: int, key: Key[Array, ""] | None = None) -> State:
    """Zero weights, or with a key uniform ones in +-1/sqrt(M).

    Args:
        vocabulary: M.
        key: Random key.

    Returns:
        State at step zero.

    Example:
        >>> print(init(3).params.y.sum())
        0.0

    Source: Tian, Wang, Chen, Du, 2023, arXiv 2305.16380: zero in theory and in Figure 4, random in Figure 6, as in the
    authors' code.
    """
    zeros = jnp.zeros((vocabulary, vocabulary))
    if key is None:
        params = Params(zeros, zeros)
    else:
        bound = vocabulary**-0.5
        params = Params(
            *(jax.random.uniform(k, zeros.shape, minval=-bound, maxval=bound) for k in jax.random.split(key))
        )
    return State(params, Params(zeros, zeros), jnp.zeros((), jnp.int32))


def attention(z: Float[Array, "M M"], batch: Batch) -> Float[Array, "B M"]:
    """The attention that each token gets, over all its places in the context.

        c_l = n_l exp(z[m, l]) / sum_k n_k exp(z[m, k])

    Args:
        z: Attention logits.
        batch: Sequences.

    Returns:
        c; rows sum to one.

    Example:
        >>> batch = Batch(jnp.array([[1.0, 3.0]]), jnp.array([0]), jnp.array([1]))
        >>> print(attention(jnp.zeros((2, 2)), batch).round(6))
        [[0.25 0.75]]

    Source: Tian, Wang, Chen, Du, 2023, Section 3 (X^T b), arXiv 2305.16380.
    """
    seen = batch.counts > 0
    logits = jnp.where(seen, jnp.log(jnp.where(seen, batch.counts, 1)) + z[batch.last], -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def loss(params: Params, batch: Batch) -> Float[Array, ""]:
    """Mean cross entropy of the next token, over all M tokens, in nats.

    Args:
        params: Weights.
        batch: Sequences.

    Returns:
        The loss; log M at zero weights.

    Example:
        >>> from attnjax.tasks import token_classes
        >>> print(f"{loss(init(34).params, population(token_classes())):.4f}")
        3.5264

    Source: Tian, Wang, Chen, Du, 2023, Section 3, arXiv 2305.16380.
    """
    c = attention(params.z, batch)
    logits = c / jnp.linalg.norm(c, axis=-1, keepdims=True) @ params.y
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), batch.next[:, None], axis=-1))


def ascent(params: Params, batch: Batch) -> Params:
    """The direction in which training moves, minus the gradient of `loss`, in closed form.

        dY = f (e_next - alpha)^T
        dZ = e_m (diag(c) (I - f f^T) Y (e_next - alpha) / |c|)^T,   alpha = softmax(Y^T f)

    The paper's x_T (x_next - alpha)^T Y^T (P_perp / |X^T b|) X^T diag(b) X is the second line with one-hot tokens,
    for which X^T diag(b) X = diag(c); the softmax's own -b b^T drops out, as P_perp annihilates X^T b.

    Args:
        params: Weights.
        batch: Sequences; the directions are averaged over them.

    Returns:
        Directions of both weights.

    Example:
        >>> from attnjax.tasks import token_classes
        >>> batch, params = population(token_classes()), init(34, jax.random.key(0)).params
        >>> by_hand, gradient = ascent(params, batch), jax.grad(loss)(params, batch)
        >>> bool(jnp.allclose(by_hand.z, -gradient.z, atol=1e-6))
        True

    Source: Tian, Wang, Chen, Du, 2023, Lemma 1, arXiv 2305.16380.
    """
    c = attention(params.z, batch)
    norm = jnp.linalg.norm(c, axis=-1, keepdims=True)
    f = c / norm
    missing = jax.nn.one_hot(batch.next, f.shape[-1], dtype=f.dtype) - jax.nn.softmax(f @ params.y)
    told = missing @ params.y.T
    across = told - f * jnp.sum(f * told, axis=-1, keepdims=True)
    rows = jnp.zeros_like(params.z).at[batch.last].add(f * across)
    size = f.shape[0]
    return Params(f.T @ missing / size, rows / size)


def step(
    state: State,
    batch: Batch,
    *,
    rate_y: float | Float[Array, ""],
    rate_z: float | Float[Array, ""],
    momentum: float | Float[Array, ""] = 0.0,
) -> tuple[State, Info]:
    """One step of SGD with heavy-ball momentum and a learning rate for each of the two weights.

        velocity <- momentum * velocity + direction;   weight <- weight + rate * velocity

    Args:
        state: From `init` or the previous step.
        batch: A fresh batch.
        rate_y: Learning rate of the decoder.
        rate_z: Learning rate of the attention logits.
        momentum: In [0, 1).

    Returns:
        The next state, and the loss at the given one.

    Example:
        >>> from attnjax.tasks import token_classes
        >>> batch = population(token_classes())
        >>> state, info = step(init(34), batch, rate_y=1.0, rate_z=1.0)
        >>> bool(loss(state.params, batch) < info.loss)
        True

    Source: Tian, Wang, Chen, Du, 2023, arXiv 2305.16380; momentum 0.9 as in the authors' code.
    """
    velocity = jax.tree.map(lambda v, d: momentum * v + d, state.velocity, ascent(state.params, batch))
    params = Params(state.params.y + rate_y * velocity.y, state.params.z + rate_z * velocity.z)
    return State(params, velocity, state.step + 1), Info(loss(state.params, batch))
