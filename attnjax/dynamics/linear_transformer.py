"""Layers of linear self-attention, which can take steps of gradient descent on the prompt's own regression problem.

Tokens are (x_i, y_i) for the examples and (x_q, 0) for the query; only examples are attended to. One layer is

    z_t <- z_t + W_PV M W_KQ z_t / N,   M = sum_{i <= N} z_i z_i^T,

and the prediction is minus the query's last entry.

Source: von Oswald, Niklasson, Randazzo, Sacramento, Mordvintsev, Zhmoginov, Vladymyrov, 2023, "Transformers Learn
In-Context by Gradient Descent", ICML 2023, arXiv 2212.07677; Ahn, Cheng, Daneshmand, Sra, 2023, "Transformers learn to
implement preconditioned gradient descent for in-context learning", NeurIPS 2023, arXiv 2306.00297, and its authors'
code, chengxiang/LinearTransformer.
Deviation: the first paper has no 1 / N in the layer; it is in the learning rate there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attnjax.dynamics._products import product
from attnjax.dynamics.softmax_attention import Optimizer
from attnjax.tasks import Prompts, prompt_tokens


class Params(NamedTuple):
    """Merged weights of L layers; E = D + 1 is the size of a token.

    Attributes:
        w_pv: Projection times value.
        w_kq: Key transposed times query.
    """

    w_pv: Float[Array, "L E E"]
    w_kq: Float[Array, "L E E"]


class Free(NamedTuple):
    """What Ahn et al. train: the blocks on the inputs; the rest of `Params` is zero but for W_PV's corner, which is -1.

    Attributes:
        p: Minus W_PV's block.
        q: W_KQ's block.
    """

    p: Float[Array, "L D D"]
    q: Float[Array, "L D D"]


class State(NamedTuple):
    """What training carries from step to step; `trained` is `Params`, `Free`, or any pytree that `build` takes."""

    trained: Any
    optimizer: Any
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the batch loss before it."""

    loss: Float[Array, ""]


def descent(free: Free) -> Params:
    """The weights whose layer l moves labels by one preconditioned step of gradient descent, and inputs by another.

        y_t <- y_t - sum_i y_i x_i^T Q_l x_t / N,     x_t <- x_t - P_l sum_i x_i x_i^T Q_l x_t / N

    With P = 0 the prediction is that of L steps of gradient descent from zero on the prompt's least squares, with
    preconditioners Q_l; with P it is what von Oswald et al. call GD++.

    Args:
        free: The blocks.

    Returns:
        Weights.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> one_step = descent(Free(jnp.zeros((1, 3, 3)), 0.1 * jnp.eye(3)[None]))
        >>> gradient = jnp.einsum("bi,bid->bd", prompts.y, prompts.x) / 5
        >>> expected = 0.1 * jnp.sum(gradient * prompts.x_query, axis=1)
        >>> bool(jnp.allclose(predict(one_step, prompts), expected, atol=1e-6))
        True

    Source: von Oswald et al., 2023, Proposition 1, arXiv 2212.07677; Ahn et al., 2023, arXiv 2306.00297, and the
    authors' code (linear_transformer.py), where the output has the opposite sign.
    """
    pad = lambda block: jnp.pad(block, ((0, 0), (0, 1), (0, 1)))
    return Params(pad(-free.p).at[:, -1, -1].set(-1.0), pad(free.q))


def transform(params: Params, tokens: Float[Array, "B T E"]) -> Float[Array, "B T E"]:
    """Tokens after all layers, in O(L T E^2).

    Args:
        params: Weights.
        tokens: Examples, then the query, as rows.

    Returns:
        Tokens.

    Example:
        >>> tokens = jnp.ones((1, 4, 2))
        >>> zero = Params(jnp.zeros((3, 2, 2)), jnp.zeros((3, 2, 2)))
        >>> bool((transform(zero, tokens) == tokens).all())
        True
    """
    n = tokens.shape[1] - 1

    def layer(tokens, weights):
        pv, kq = weights
        moment = jnp.einsum("bie,bif->bef", tokens[:, :-1], tokens[:, :-1]) / n
        map_ = jnp.einsum("ge,bef,fh->bgh", pv, moment, kq)
        return tokens + jnp.einsum("bth,bgh->btg", tokens, map_), None

    return jax.lax.scan(layer, tokens, params, unroll=True)[0]


def predict(params: Params, prompts: Prompts) -> Float[Array, " B"]:
    """The prediction for the query's label: minus the last entry of its token after all layers, in O(N E^2 + L E^3).

    Every layer applies one map A = I + W_PV M W_KQ to all tokens of a prompt, so that it is enough to follow the query
    and the moment of the examples,

        z_q <- A z_q,   M <- A M A^T.

    Args:
        params: Weights.
        prompts: What `attnjax.tasks.linear_regression` returns.

    Returns:
        One prediction per prompt.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> params = descent(Free(*0.2 * jax.random.normal(jax.random.key(1), (2, 4, 3, 3))))
        >>> expected = -transform(params, prompt_tokens(prompts))[:, -1, -1]
        >>> bool(jnp.allclose(predict(params, prompts), expected, atol=1e-5))
        True
    """
    tokens = jnp.moveaxis(prompt_tokens(prompts), 0, -1)
    examples, query = tokens[:-1], tokens[-1][:, None]
    moment = product(jnp.swapaxes(examples, 0, 1), examples) / len(examples)
    unit = jnp.eye(len(query), dtype=query.dtype)[..., None]
    for pv, kq in zip(params.w_pv, params.w_kq, strict=True):
        a = unit + jnp.einsum("ge,efb,fh->ghb", pv, moment, kq)
        query = product(a, query)
        moment = product(product(a, moment), jnp.swapaxes(a, 0, 1))
    return -query[-1, 0]


def loss(params: Params, prompts: Prompts) -> Float[Array, ""]:
    """Mean squared error of the query's label.

    Args:
        params: Weights.
        prompts: A batch.

    Returns:
        The loss.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> nothing = descent(Free(jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 3))))
        >>> bool(loss(nothing, prompts) == jnp.mean(prompts.y_query**2))
        True

    Source: Ahn et al., 2023, arXiv 2306.00297; von Oswald et al. halve it.
    """
    return jnp.mean((predict(params, prompts) - prompts.y_query) ** 2)


def init(
    key: Key[Array, ""], *, dimension: int, layers: int, scale: float, optimizer: Optimizer, full: bool = False
) -> State:
    """Normal entries.

    Args:
        key: Random key.
        dimension: D, of the inputs.
        layers: L.
        scale: Standard deviation of every entry.
        optimizer: What `step` will use.
        full: Whether all of `Params` is trained, as by von Oswald et al., or `Free`, as by Ahn et al.

    Returns:
        State at step zero.

    Raises:
        ValueError: A size below one.

    Example:
        >>> import optax
        >>> init(jax.random.key(0), dimension=5, layers=3, scale=0.05, optimizer=optax.sgd(0.02)).trained.q.shape
        (3, 5, 5)
    """
    for name, size in (("dimension", dimension), ("layers", layers)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    size, kind = (dimension + 1, Params) if full else (dimension, Free)
    trained = kind(*scale * jax.random.normal(key, (2, layers, size, size)))
    return State(trained, optimizer.init(trained), jnp.zeros((), jnp.int32))


def step(
    state: State, prompts: Prompts, optimizer: Optimizer, build: Callable[[Any], Params] = descent
) -> tuple[State, Info]:
    """One step of training.

    Args:
        state: From `init` or the previous step.
        prompts: A fresh batch.
        optimizer: The one that `init` was given.
        build: From what is trained to the weights: `descent` for `Free`, `lambda params: params` for `Params`.

    Returns:
        The next state, and the loss at the given one.

    Example:
        >>> import optax
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=64, length=9, covariance=jnp.ones(3))
        >>> adam = optax.adam(1e-2)
        >>> start = init(jax.random.key(1), dimension=3, layers=2, scale=0.05, optimizer=adam)
        >>> after, info = step(start, prompts, adam)
        >>> bool(loss(descent(after.trained), prompts) < info.loss)
        True
    """
    value, gradient = jax.value_and_grad(lambda trained: loss(build(trained), prompts))(state.trained)
    updates, carried = optimizer.update(gradient, state.optimizer)
    trained = jax.tree.map(jnp.add, state.trained, updates)
    return State(trained, carried, state.step + 1), Info(value)
