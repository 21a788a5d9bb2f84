"""One attention layer below a perceptron, both trained: contextual tokens, one query, classes to tell apart.

Sequences of class y hold contextual token l with frequency x_{l|y} and end with one query token, whose logits z weigh
the contextual tokens. Embeddings are orthonormal, so the query's output is f_y = (b_y; 1), with b_y one of

    linear     b_l = x_{l|y} z_l
    exp        b_l = x_{l|y} exp(z_l / tau)
    softmax    b_l = x_{l|y} exp(z_l / tau) / sum_m x_{m|y} exp(z_m / tau)

and the class is read from it by a perceptron: logits = W_n phi(... phi(W_1 f_y)). One matrix is the authors' example.

Source: Tian, Wang, Zhang, Chen, Du, 2024, "JoMA: Demystifying Multilayer Transformers via Joint Dynamics of MLP and
Attention", ICLR 2024, arXiv 2310.00535, and the authors' code, facebookresearch/luckmatters (ssl/real-dataset/joma).
Deviation: the authors' linear attention has no temperature, as here; exp attention is not divided by a constant.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

KINDS = ("linear", "exp", "softmax")


class Params(NamedTuple):
    """What is trained.

    Attributes:
        z: Logit of each contextual token.
        layers: Weights of the perceptron from below; the first sees M contextual tokens and the query.
    """

    z: Float[Array, " M"]
    layers: tuple[Float[Array, "_ _"], ...]


class State(NamedTuple):
    """What gradient descent carries from step to step."""

    params: Params
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the loss before it."""

    loss: Float[Array, ""]


def identity(x: Array) -> Array:
    """No activation.

        phi(x) = x

    Args:
        x: Anything.

    Returns:
        The same.

    Example:
        >>> print(identity(jnp.ones(2)))
        [1. 1.]
    """
    return x


def init(key: Key[Array, ""], *, tokens: int, widths: Sequence[int], scale: float = 0.01) -> State:
    """Normal weights and logits.

    Args:
        key: Random key.
        tokens: M, contextual tokens.
        widths: Outputs of each matrix of the perceptron; the last is the number of classes.
        scale: Standard deviation of every entry; the authors' is 0.01.

    Returns:
        State at step zero.

    Raises:
        ValueError: A size below one.

    Example:
        >>> [w.shape for w in init(jax.random.key(0), tokens=20, widths=(8, 5)).params.layers]
        [(8, 21), (5, 8)]

    Source: the authors' code (draw_figure_2_3.py), arXiv 2310.00535.
    """
    sizes = (tokens, *widths)
    if not widths or min(sizes) < 1:
        raise ValueError(f"tokens and all of widths must be at least 1, got {tokens} and {tuple(widths)}")
    sizes = (tokens + 1, *widths)
    *keys, z_key = jax.random.split(key, len(sizes))
    layers = tuple(
        scale * jax.random.normal(key, (outputs, inputs))
        for key, inputs, outputs in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
    return State(Params(scale * jax.random.normal(z_key, (tokens,)), layers), jnp.zeros((), jnp.int32))


def attention(
    z: Float[Array, " M"], frequencies: Float[Array, "Y M"], kind: str, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "Y M"]:
    """What the query takes of each contextual token, by class; see the module's docstring.

    Args:
        z: Logits.
        frequencies: x, one row per class, summing to one.
        kind: "linear", "exp" or "softmax".
        temperature: tau; linear attention has none.

    Returns:
        b.

    Raises:
        ValueError: An unknown kind.

    Example:
        >>> print(attention(jnp.zeros(2), jnp.array([[0.25, 0.75]]), "exp"))
        [[0.25 0.75]]

    Source: Tian et al., 2024 [linear, exp and softmax attention], arXiv 2310.00535.
    """
    if kind == "linear":
        return frequencies * z[None]
    if kind == "exp":
        return frequencies * jnp.exp(z / temperature)[None]
    if kind == "softmax":
        return jax.nn.softmax(jnp.log(frequencies) + (z / temperature)[None], axis=-1)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def loss(
    params: Params,
    frequencies: Float[Array, "Y M"],
    *,
    kind: str,
    temperature: float | Float[Array, ""] = 1.0,
    activation: Callable[[Array], Array] = identity,
) -> Float[Array, ""]:
    """Cross-entropy of the classes, all equally likely.

    Args:
        params: Weights.
        frequencies: x.
        kind: "linear", "exp" or "softmax".
        temperature: tau.
        activation: phi, between the perceptron's matrices.

    Returns:
        The loss, in nats.

    Raises:
        ValueError: An unknown kind.

    Example:
        >>> zeros = Params(jnp.zeros(2), (jnp.zeros((4, 3)),))
        >>> print(loss(zeros, jnp.full((4, 2), 0.5), kind="softmax").round(4))  # ln 4
        1.3863

    Source: the authors' code (draw_figure_2_3.py), arXiv 2310.00535.
    """
    b = attention(params.z, frequencies, kind, temperature)
    hidden = jnp.concatenate([b, jnp.ones((len(b), 1), b.dtype)], axis=1) @ params.layers[0].T
    for weights in params.layers[1:]:
        hidden = activation(hidden) @ weights.T
    return -jnp.diagonal(jax.nn.log_softmax(hidden, axis=-1)).mean()


def step(
    state: State,
    frequencies: Float[Array, "Y M"],
    learning_rate: float | Float[Array, ""],
    *,
    kind: str,
    temperature: float | Float[Array, ""] = 1.0,
    activation: Callable[[Array], Array] = identity,
) -> tuple[State, Info]:
    """One step of gradient descent on the logits and on every matrix.

    Args:
        state: From `init` or the previous step.
        frequencies: x.
        learning_rate: Flow time that passes in the step.
        kind: "linear", "exp" or "softmax".
        temperature: tau.
        activation: phi.

    Returns:
        The next state, and the loss at the given one.

    Raises:
        ValueError: An unknown kind.

    Example:
        >>> state = init(jax.random.key(0), tokens=3, widths=(2,))
        >>> x = jnp.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
        >>> after, info = step(state, x, 0.1, kind="softmax")
        >>> bool(loss(after.params, x, kind="softmax") < info.loss)
        True
    """
    of = lambda params: loss(params, frequencies, kind=kind, temperature=temperature, activation=activation)
    value, gradient = jax.value_and_grad(of)(state.params)
    params = jax.tree.map(lambda p, g: p - learning_rate * g, state.params, gradient)
    return State(params, state.step + 1), Info(value)
