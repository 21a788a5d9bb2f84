"""One linear self-attention layer with all its parameters, trained by SGD on sampled prompts.

Source: Zhang, Frei, Bartlett, 2024, "Trained Transformers Learn Linear Models In-Context", JMLR 25(49),
arXiv 2306.09927.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attnjax.tasks import Prompts, prompt_tokens


class Params(NamedTuple):
    """Merged weights of the layer; E = D + 1 is the size of a token (x, y).

    Attributes:
        w_pv: Projection times value.
        w_kq: Key transposed times query.
    """

    w_pv: Float[Array, "E E"]
    w_kq: Float[Array, "E E"]


class State(NamedTuple):
    """What SGD carries from step to step."""

    params: Params
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the batch loss before it and the norm of its gradient."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def init(theta: Float[Array, "D D"], scale: float | Float[Array, ""]) -> State:
    """The balanced start: both matrices zero but for the blocks that the theory follows, of equal norm.

        W_PV = scale e e^T with e the last unit vector;   W_KQ[:D, :D] = scale * theta theta^T / |theta theta^T|_F

    Args:
        theta: Any matrix whose product with the input covariance is not zero; it is scaled to |theta theta^T|_F = 1.
        scale: Positive; the theorem asks scale^2 |Gamma|_op sqrt(D) < 2, see
            `linear_attention_theory.largest_init_scale`.

    Returns:
        State at step zero, in the dtype of `theta`.

    Raises:
        ValueError: `theta` is not square.

    Example:
        >>> state = init(jnp.eye(4), 0.1)
        >>> print(round(float(jnp.linalg.norm(state.params.w_kq)), 6), round(float(state.params.w_pv[-1, -1]), 6))
        0.1 0.1

    Source: Zhang, Frei, Bartlett, 2024, Assumption 3.3, arXiv 2306.09927.
    """
    if theta.ndim != 2 or theta.shape[0] != theta.shape[1]:
        raise ValueError(f"theta must be a square matrix [D, D], got shape {theta.shape}")
    size = theta.shape[0] + 1
    gram = theta @ theta.T
    zeros = jnp.zeros((size, size), theta.dtype)
    w_kq = zeros.at[:-1, :-1].set(scale * gram / jnp.linalg.norm(gram))
    return State(Params(zeros.at[-1, -1].set(scale), w_kq), jnp.zeros((), jnp.int32))


def random_theta(key: Key[Array, ""], dimension: int) -> Float[Array, "D D"]:
    """A Gaussian `theta` for `init`, which commutes with no given covariance.

    Args:
        key: Random key.
        dimension: D.

    Returns:
        Standard normal entries.

    Example:
        >>> random_theta(jax.random.key(0), 3).shape
        (3, 3)
    """
    return jax.random.normal(key, (dimension, dimension))


def layer(params: Params, tokens: Float[Array, "*B T E"]) -> Float[Array, "*B T E"]:
    """Linear self-attention with a residual connection.

        f(E) = E + W_PV E (E^T W_KQ E) / N,   N = T - 1 labeled examples, tokens as columns of E

    Args:
        params: Weights.
        tokens: Examples (x_i, y_i), then the query (x_q, 0), as rows.

    Returns:
        Tokens after the layer.

    Example:
        >>> tokens = jnp.ones((3, 2))
        >>> bool((layer(init(jnp.eye(1), 0.0).params, tokens) == tokens).all())
        True

    Source: Zhang, Frei, Bartlett, 2024, Section 3.2 [f_LSA], arXiv 2306.09927.
    Deviation: tokens are rows here. As in the paper, the query token attends to itself too.
    """
    n = tokens.shape[-2] - 1
    scores = jnp.einsum("...se,ef,...tf->...ts", tokens, params.w_kq, tokens)
    return tokens + jnp.einsum("...ts,...se,fe->...tf", scores, tokens, params.w_pv) / n


def predict(params: Params, prompts: Prompts) -> Float[Array, " B"]:
    """The prediction for the query's label: the last entry of the query's token after `layer`, in O(N D + D^2).

    Args:
        params: Weights.
        prompts: What `attnjax.tasks.linear_regression` returns.

    Returns:
        One prediction per prompt.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> tokens = prompt_tokens(prompts)
        >>> params = init(jnp.eye(3), 0.5).params
        >>> bool(jnp.allclose(predict(params, prompts), layer(params, tokens)[:, -1, -1], atol=1e-6))
        True
    """
    tokens = prompt_tokens(prompts)
    query = tokens[:, -1] @ params.w_kq.T
    scores = jnp.einsum("bse,be->bs", tokens, query)
    values = tokens @ params.w_pv[-1]
    return jnp.einsum("bs,bs->b", scores, values) / (tokens.shape[1] - 1)


def loss(params: Params, prompts: Prompts) -> Float[Array, ""]:
    """Half the mean squared error of the query's label.

    Args:
        params: Weights.
        prompts: A batch.

    Returns:
        The batch loss; its mean is `linear_attention_theory.population_loss` when the other blocks are zero.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> bool(loss(init(jnp.eye(3), 0.0).params, prompts) == 0.5 * jnp.mean(prompts.y_query**2))
        True

    Source: Zhang, Frei, Bartlett, 2024, Section 3.3, arXiv 2306.09927.
    """
    return 0.5 * jnp.mean((predict(params, prompts) - prompts.y_query) ** 2)


def step(state: State, prompts: Prompts, learning_rate: float | Float[Array, ""]) -> tuple[State, Info]:
    """One step of SGD on every entry of both matrices.

    Args:
        state: From `init` or the previous step.
        prompts: A fresh batch.
        learning_rate: Gradient-flow time that passes in the step.

    Returns:
        The next state, and the loss and gradient norm at the given one.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=64, length=5, covariance=jnp.ones(3))
        >>> state, info = step(init(jnp.eye(3), 0.5), prompts, 0.01)
        >>> bool(loss(state.params, prompts) < info.loss)
        True
    """
    value, gradient = jax.value_and_grad(loss)(state.params, prompts)
    params = jax.tree.map(lambda p, g: p - learning_rate * g, state.params, gradient)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))
    return State(params, state.step + 1), Info(value, norm)
