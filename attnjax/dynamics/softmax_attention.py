"""One layer of multi-head softmax attention that learns linear regression in context.

The query's token z_q = (x_q, 0) attends to the examples z_i = (x_i, y_i), not to itself, with H heads of full width:

    y_hat = sum_h ov_h^T sum_i p_hi z_i,   p_h = softmax_i(z_i^T kq_h z_q),
    kq_h = K_h^T Q_h / sqrt(E),   ov_h = V_h^T o_h

With K labels, z_i = (x_i, y_i1, .., y_iK) and every head is read K times, by o_h1 .. o_hK.

Source: He, Pan, Chen, Yang, 2025, "In-Context Linear Regression Demystified", ICML 2025, arXiv 2503.12734, and the
authors' code, XintianPan/ICL_linear.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from attnjax.tasks import Prompts, prompt_tokens


class Params(NamedTuple):
    """Weights; E = D + 1 is the size of a token (x, y), and of a head; D + K with K labels.

    Attributes:
        q: Queries are q z.
        k: Keys are k z.
        v: Values are v z.
        o: What each head's output is read with, once `[H, E]` or for each of K labels.
    """

    q: Float[Array, "H E E"]
    k: Float[Array, "H E E"]
    v: Float[Array, "H E E"]
    o: Float[Array, "H *K E"]


class Circuits(NamedTuple):
    """What the weights do: scores are z_i^T kq z_q, outputs are read by ov.

    Attributes:
        kq: One matrix per head.
        ov: One vector per head, or per head and label.
    """

    kq: Float[Array, "H E E"]
    ov: Float[Array, "H *K E"]


@runtime_checkable
class Optimizer(Protocol):
    """Any optax `GradientTransformation`."""

    def init(self, params: Any, /) -> Any: ...
    def update(self, updates: Any, state: Any, /) -> tuple[Any, Any]: ...


class State(NamedTuple):
    """What training carries from step to step."""

    params: Params
    optimizer: Any
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the batch loss before it."""

    loss: Float[Array, ""]


def init(key: Key[Array, ""], *, dimension: int, heads: int, optimizer: Optimizer, labels: int | None = None) -> State:
    """Uniform entries on +-1 / sqrt(fan-in), with fan-in E for q, k, v and H E for o, as PyTorch's linear layers have.

    Args:
        key: Random key.
        dimension: D, of the inputs.
        heads: H.
        optimizer: What `step` will use.
        labels: K for prompts of `several_regressions`, None for those of `linear_regression`.

    Returns:
        State at step zero.

    Raises:
        ValueError: A size below one.

    Example:
        >>> import optax
        >>> init(jax.random.key(0), dimension=5, heads=2, optimizer=optax.adam(1e-3)).params.q.shape
        (2, 6, 6)

    Source: the authors' code (src/models.py), arXiv 2503.12734.
    """
    for name, size in (("dimension", dimension), ("heads", heads), ("labels", 1 if labels is None else labels)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    read_by = () if labels is None else (labels,)
    e = dimension + (labels or 1)
    shapes = {"q": (heads, e, e), "k": (heads, e, e), "v": (heads, e, e), "o": (heads, *read_by, e)}
    bounds = {"q": e, "k": e, "v": e, "o": heads * e}
    keys = jax.random.split(key, 4)
    draw = lambda key, name: jax.random.uniform(key, shapes[name], minval=-1, maxval=1) / jnp.sqrt(bounds[name])
    params = Params(*(draw(key, name) for key, name in zip(keys, Params._fields, strict=True)))
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def circuits(params: Params) -> Circuits:
    """The products of weights that the function depends on.

    Args:
        params: Weights.

    Returns:
        The circuits.

    Example:
        >>> ones = jnp.ones((1, 4, 4))
        >>> print(circuits(Params(ones, ones, ones, jnp.ones((1, 4)))).ov)
        [[4. 4. 4. 4.]]

    Source: He et al., 2025 [KQ and OV circuits], arXiv 2503.12734.
    """
    kq = jnp.einsum("hfe,hfg->heg", params.k, params.q) / jnp.sqrt(params.q.shape[-1])
    return Circuits(kq, jnp.einsum("h...f,hfe->h...e", params.o, params.v))


def read(of: Circuits, tokens: Float[Array, "B T E"]) -> Float[Array, "B *K"]:
    """What the heads make of the query, the last token, which they do not attend to.

    Args:
        of: Circuits.
        tokens: Examples, then the query, of any layout that the circuits are made for.

    Returns:
        One number per prompt, or K.

    Example:
        >>> mean = Circuits(jnp.zeros((1, 2, 2)), jnp.array([[0.0, 1.0]]))  # attends to all alike, reads the last entry
        >>> print(read(mean, jnp.array([[[5.0, 1.0], [6.0, 3.0], [7.0, 0.0]]])))
        [2.]

    Source: the authors' code (src/models.py), arXiv 2503.12734.
    """
    examples, query = tokens[:, :-1], tokens[:, -1]
    sought = jnp.einsum("hef,bf->bhe", of.kq, query)
    weights = jax.nn.softmax(jnp.einsum("bie,bhe->bhi", examples, sought), axis=-1)
    means = jnp.einsum("bhi,bie->bhe", weights, examples)  # first: half the cost of reading every example
    return jnp.einsum("bhe,h...e->b...", means, of.ov)


def predict(of: Circuits, prompts: Prompts) -> Float[Array, "B *K"]:
    """The prediction for the query's label, or labels.

    Args:
        of: Circuits, of a trained layer or made by hand.
        prompts: What `attnjax.tasks.linear_regression` or `several_regressions` returns.

    Returns:
        One prediction per prompt and label.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> mean = predict(Circuits(jnp.zeros((1, 4, 4)), jnp.eye(4)[-1:]), prompts)  # attends to all alike
        >>> bool(jnp.allclose(mean, prompts.y.mean(1)))
        True

    Source: the authors' code (src/models.py), arXiv 2503.12734.
    """
    return read(of, prompt_tokens(prompts))


def loss(params: Params, prompts: Prompts) -> Float[Array, ""]:
    """Mean squared error of the query's label, averaged over labels where there are several.

        L = mean (y_hat - y_q)^2

    Args:
        params: Weights.
        prompts: A batch.

    Returns:
        The loss.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))
        >>> zeros = jnp.zeros((1, 4, 4))
        >>> bool(loss(Params(zeros, zeros, zeros, zeros[:, 0]), prompts) == jnp.mean(prompts.y_query**2))
        True

    Source: He et al., 2025, arXiv 2503.12734.
    Deviation: the paper's query label is noisy, which adds the noise's variance to the loss and nothing to the mean of
    its gradient.
    """
    return jnp.mean((predict(circuits(params), prompts) - prompts.y_query) ** 2)


def step(state: State, prompts: Prompts, optimizer: Optimizer) -> tuple[State, Info]:
    """One step of training on q, k, v and o.

    Args:
        state: From `init` or the previous step.
        prompts: A fresh batch.
        optimizer: The one that `init` was given.

    Returns:
        The next state, and the loss at the given one.

    Example:
        >>> import optax
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=64, length=5, covariance=jnp.ones(3))
        >>> adam = optax.adam(1e-3)
        >>> state, info = step(init(jax.random.key(1), dimension=3, heads=2, optimizer=adam), prompts, adam)
        >>> bool(loss(state.params, prompts) < info.loss)
        True
    """
    value, gradient = jax.value_and_grad(loss)(state.params, prompts)
    updates, carried = optimizer.update(gradient, state.optimizer)
    params = jax.tree.map(jnp.add, state.params, updates)
    return State(params, carried, state.step + 1), Info(value)
