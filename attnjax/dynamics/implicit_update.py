"""What a context does to a Transformer block is what a rank-one update of its perceptron does without the context.

A block computes T_W(C, x) = f(W A(C, x)), with A(C, x) what attention gives the query x in context C, and f all that
follows the perceptron's first matrix. Then, exactly and for any attention,

    T_W(C, x) = T_{W + dW}(x),   dW = W (A(C, x) - A(x)) A(x)^T / |A(x)|^2.

Where a skip connection leads A past the perceptron too, its output bias moves by A(C, x) - A(x). Context tokens that
come one by one make dW a sum, in which each term is one step of gradient descent of rate 1 / |A(x)|^2.

Source: Dherin, Munn, Mazzawi, Wunder, Gonzalvo, 2025, "Learning without training: The implicit dynamics of in-context
learning", arXiv 2507.16003.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attnjax.attention import attend, masks
from attnjax.dynamics.softmax_attention import Optimizer
from attnjax.tasks import Prompts, prompt_tokens


def implicit_update(
    w: Float[Array, "F E"], in_context: Float[Array, " E"], alone: Float[Array, " E"]
) -> Float[Array, "F E"]:
    """The update of a matrix that replaces a context.

        dW = W (A(C, x) - A(x)) A(x)^T / |A(x)|^2

    Args:
        w: The matrix that reads A.
        in_context: A(C, x).
        alone: A(x), not zero.

    Returns:
        dW, of rank one.

    Example:
        >>> w, a, b = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 2.0]), jnp.array([2.0, 0.5])
        >>> bool(jnp.allclose((w + implicit_update(w, a, b)) @ b, w @ a))
        True

    Source: Dherin et al., 2025, Theorem 2.2, arXiv 2507.16003.
    """
    return jnp.outer(w @ (in_context - alone), alone) / (alone @ alone)


def implicit_gradients(w: Float[Array, "F E"], by_prefix: Float[Array, "C E"]) -> Float[Array, "C-1 F E"]:
    """The gradients that gradient descent of rate 1 / |A(x)|^2 follows as context tokens come one by one.

        Delta_i = W (A(c_1 .. c_i, x) - A(c_1 .. c_{i+1}, x)) A(x)^T,   W_{i+1} = W_i - Delta_i / |A(x)|^2

    Args:
        w: The matrix that reads A.
        by_prefix: A in no context, in that of the first token, and so on.

    Returns:
        Delta_0 .. Delta_{N-1}.

    Example:
        >>> w, a = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> descended = w - implicit_gradients(w, a).sum(0) / (a[0] @ a[0])
        >>> bool(jnp.allclose(descended, w + implicit_update(w, a[-1], a[0])))
        True

    Source: Dherin et al., 2025, Proposition 3.1, arXiv 2507.16003.
    """
    differences = by_prefix[:-1] - by_prefix[1:]
    return jnp.einsum("fe,ne,g->nfg", w, differences, by_prefix[0])


class Params(NamedTuple):
    """Weights of a pre-norm block of one head on the tokens of a regression prompt.

    Attributes:
        embedding: Of a token (x, y).
        qkv: Queries, keys and values.
        projection: Of the attended values.
        w: The perceptron's first matrix, the one that the update moves.
        w_bias: Its bias.
        output: The perceptron's second matrix.
        output_bias: Its bias.
        readout: From the query's output to its label.
    """

    embedding: Float[Array, "E I"]
    qkv: Float[Array, "3E E"]
    projection: Float[Array, "E E"]
    w: Float[Array, "F E"]
    w_bias: Float[Array, " F"]
    output: Float[Array, "E F"]
    output_bias: Float[Array, " E"]
    readout: Float[Array, " E"]


class State(NamedTuple):
    """What training carries from step to step."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the loss before it."""

    loss: Float[Array, ""]


def init(key: Key[Array, ""], *, dimension: int, width: int, optimizer: Optimizer) -> State:
    """Normal weights of variance 1 / fan-in, no biases; the perceptron is four times as wide.

    Args:
        key: Random key.
        dimension: D, of the inputs.
        width: E.
        optimizer: What `step` will use.

    Returns:
        State at step zero.

    Raises:
        ValueError: A size below one.

    Example:
        >>> import optax
        >>> init(jax.random.key(0), dimension=2, width=8, optimizer=optax.adam(1e-3)).params.w.shape
        (32, 8)
    """
    for name, size in (("dimension", dimension), ("width", width)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    keys = iter(jax.random.split(key, 6))
    normal = lambda *shape: jax.random.normal(next(keys), shape) / jnp.sqrt(shape[-1])
    params = Params(
        embedding=normal(width, dimension + 1),
        qkv=normal(3 * width, width),
        projection=normal(width, width),
        w=normal(4 * width, width),
        w_bias=jnp.zeros(4 * width),
        output=normal(width, 4 * width),
        output_bias=jnp.zeros(width),
        readout=normal(width),
    )
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def contextual(
    params: Params, tokens: Float[Array, "T I"], length: int | Int[Array, ""] | None = None
) -> Float[Array, " E"]:
    """A(C, x): what the query, the last token, has after attention and its skip connection.

    Args:
        params: Weights.
        tokens: The context, then the query.
        length: How many tokens of the context it sees, from the first; None is all, and 0 gives A(x).

    Returns:
        A.

    Example:
        >>> import optax
        >>> params = init(jax.random.key(0), dimension=2, width=8, optimizer=optax.adam(1e-3)).params
        >>> contextual(params, jnp.ones((5, 3))).shape
        (8,)
    """
    z = jnp.einsum("ti,ei->te", tokens, params.embedding)
    q, k, v = jnp.split(jnp.einsum("te,fe->tf", _standardized(z), params.qkv), 3, axis=-1)
    heads, last = lambda part: part[None, :, None], len(tokens) - 1
    places = jnp.arange(len(tokens))
    seen = (places < (last if length is None else length)) | (places == last)
    attended = attend(heads(q[-1:]), heads(k), heads(v), mask=masks.from_array(seen[None]))[0, 0, 0]
    return z[-1] + params.projection @ attended


def perceptron(params: Params, a: Float[Array, " E"], read: Float[Array, " E"] | None = None) -> Float[Array, ""]:
    """The prediction from A: norm, perceptron, skip connection, readout.

    Args:
        params: Weights.
        a: A, what the skip connection carries.
        read: What the perceptron reads; None is A after its norm.

    Returns:
        The query's predicted label.

    Example:
        >>> import optax
        >>> params = init(jax.random.key(0), dimension=2, width=8, optimizer=optax.adam(1e-3)).params
        >>> perceptron(params, jnp.ones(8)).shape
        ()
    """
    read = normalized(a) if read is None else read
    hidden = jax.nn.gelu(params.w @ read + params.w_bias)
    return params.readout @ (a + params.output @ hidden + params.output_bias)


def normalized(a: Float[Array, " E"]) -> Float[Array, " E"]:
    """What the perceptron reads of A: zero mean, unit variance.

    Args:
        a: A.

    Returns:
        The same, standardized.

    Example:
        >>> print(normalized(jnp.array([1.0, 3.0])).round(3))
        [-1.  1.]
    """
    return _standardized(a)


def _standardized(x: Array) -> Array:
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-6)


def updated(params: Params, in_context: Float[Array, " E"], alone: Float[Array, " E"]) -> Params:
    """The weights that do without the context what the given ones do in it.

    Args:
        params: Weights.
        in_context: A(C, x), before the perceptron's norm.
        alone: A(x), likewise.

    Returns:
        Weights with w and output_bias moved.

    Example:
        >>> import optax
        >>> params = init(jax.random.key(0), dimension=2, width=8, optimizer=optax.adam(1e-3)).params
        >>> tokens = jax.random.normal(jax.random.key(1), (5, 3))
        >>> a, b = contextual(params, tokens), contextual(params, tokens, 0)
        >>> bool(jnp.allclose(perceptron(updated(params, a, b), b), perceptron(params, a), atol=1e-5))
        True

    Source: Dherin et al., 2025, Theorem 2.2 and its extension to skip connections, arXiv 2507.16003.
    """
    change = implicit_update(params.w, normalized(in_context), normalized(alone))
    return params._replace(w=params.w + change, output_bias=params.output_bias + in_context - alone)


def predict(params: Params, prompts: Prompts) -> Float[Array, " B"]:
    """The prediction for the query's label, in its context.

    Args:
        params: Weights.
        prompts: What `attnjax.tasks.linear_regression` returns.

    Returns:
        One prediction per prompt.

    Example:
        >>> import optax
        >>> from attnjax.tasks import linear_regression
        >>> params = init(jax.random.key(0), dimension=2, width=8, optimizer=optax.adam(1e-3)).params
        >>> predict(params, linear_regression(jax.random.key(1), batch=3, length=5, covariance=jnp.ones(2))).shape
        (3,)
    """
    return jax.vmap(lambda tokens: perceptron(params, contextual(params, tokens)))(prompt_tokens(prompts))


def step(state: State, prompts: Prompts, optimizer: Optimizer) -> tuple[State, Info]:
    """One step of training on the squared error of the query's label.

    Args:
        state: From `init` or the previous step.
        prompts: A fresh batch.
        optimizer: The one that `init` was given.

    Returns:
        The next state, and the loss at the given one.

    Example:
        >>> import optax
        >>> from attnjax.tasks import linear_regression
        >>> adam = optax.adam(1e-3)
        >>> state = init(jax.random.key(0), dimension=2, width=8, optimizer=adam)
        >>> prompts = linear_regression(jax.random.key(1), batch=32, length=5, covariance=jnp.ones(2))
        >>> _, before = step(state, prompts, adam)
        >>> _, after = step(step(state, prompts, adam)[0], prompts, adam)
        >>> bool(after.loss < before.loss)
        True
    """
    loss = lambda params: jnp.mean((predict(params, prompts) - prompts.y_query) ** 2)
    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, carried = optimizer.update(gradient, state.optimizer)
    params = jax.tree.map(jnp.add, state.params, updates)
    return State(params, carried, state.step + 1), Info(value)
