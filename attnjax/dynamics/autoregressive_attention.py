"""One layer of causal linear self-attention that predicts the next state of a sequence, trained by gradient descent.

A token holds two states, e_t = (x_t; x_{t-1}) with x_0 = 0, and the prediction of x_{t+1} is

    f_t = W_PV M_t W_KQ e_t / (t - 1),   M_t = sum_{i <= t} e_i e_i^H,   t = 2 .. T - 1.

Source: Zheng, Huang, Wang, Wu, Zhu, Li, 2024, "On Mesa-Optimization in Autoregressively Trained Transformers",
NeurIPS 2024, arXiv 2405.16845, and the authors' code, ML-GSAI/MesaOpt-AR-Transformer.
Deviation: the paper writes tokens of three states, (0; x_t; x_{t-1}), reads the prediction from the first, and adds a
residual, which is zero there; two states and no residual are the same function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int


class Params(NamedTuple):
    """Merged weights of the layer.

    Attributes:
        w_pv: Projection times value, the rows that are read.
        w_kq: Key transposed times query.
    """

    w_pv: Complex[Array, "D 2D"]
    w_kq: Complex[Array, "2D 2D"]


class State(NamedTuple):
    """What gradient descent carries from step to step."""

    params: Params
    step: Int[Array, ""]


class Info(NamedTuple):
    """What one step reports: the batch loss before it and the norm of its gradient."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]


class Diagonal(NamedTuple):
    """The two blocks that theory follows, read from full weights.

    Attributes:
        a: Mean diagonal entry of the block of W_KQ that pairs x_{i-1} with x_t, its real part.
        b: Mean diagonal entry of the block of W_PV that reads x_i, its real part.
        product: Mean over entries j of a_jj b_jj, its real part.
        stray: Norm of everything else, what differs from a I and b I included, over the norm of all.
    """

    a: Float[Array, ""]
    b: Float[Array, ""]
    product: Float[Array, ""]
    stray: Float[Array, ""]


def init(dimension: int, a: float | Float[Array, ""], b: float | Float[Array, ""]) -> State:
    """The diagonal start: W_KQ[D:, :D] = a I, W_PV[:, :D] = b I, all else zero.

    Args:
        dimension: D.
        a: Any number.
        b: Any number.

    Returns:
        State at step zero.

    Raises:
        ValueError: A dimension below one.

    Example:
        >>> print(diagonal(init(3, 0.5, 2.0).params).product)
        1.0

    Source: Zheng et al., 2024 [diagonal initialization], arXiv 2405.16845.
    """
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    unit, zero = jnp.eye(dimension), jnp.zeros((dimension, dimension))
    w_pv = jnp.concatenate([b * unit, zero], axis=1)
    w_kq = jnp.block([[zero, zero], [a * unit, zero]])
    params = Params(*(w.astype(jnp.result_type(w, jnp.complex64)) for w in (w_pv, w_kq)))
    return State(params, jnp.zeros((), jnp.int32))


def diagonal(params: Params) -> Diagonal:
    """Read the two blocks that theory follows.

    Args:
        params: Weights.

    Returns:
        Their diagonals, and what lies outside.

    Example:
        >>> print(diagonal(init(3, 0.5, 2.0).params).stray)
        0.0
    """
    d = params.w_pv.shape[0]
    kq, pv = jnp.diagonal(params.w_kq[d:, :d]), jnp.diagonal(params.w_pv[:, :d])
    a, b = kq.real.mean(), pv.real.mean()
    ideal = init(d, a, b).params
    difference = jax.tree.map(jnp.subtract, params, ideal)
    return Diagonal(a, b, (kq * pv).real.mean(), _norm(difference) / _norm(params))


def predict(params: Params, x: Complex[Array, "B T D"]) -> Complex[Array, "B T-2 D"]:
    """Predictions of x_3 .. x_T, each from the states before it, in O(T^2 D + T D^2).

    Args:
        params: Weights.
        x: Sequences of at least three states.

    Returns:
        f_2 .. f_{T-1}.

    Raises:
        ValueError: Fewer than three states.

    Example:
        >>> from attnjax.tasks import linear_sequences
        >>> x = linear_sequences(jax.random.key(0), jnp.eye(3)[:1], length=6)  # one coordinate moves
        >>> bool(jnp.allclose(predict(init(3, 1.0, 1.0).params, x), x[:, 2:], atol=1e-5))
        True

    Source: the authors' code (models/lsa.py), arXiv 2405.16845.
    """
    if x.shape[-2] < 3:
        raise ValueError(f"x must hold at least three states [B, T >= 3, D], got shape {x.shape}")
    before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    tokens = jnp.concatenate([x, before], axis=-1)[:, :-1]
    queries = tokens @ params.w_kq.T
    # Complex products as real ones of twice the size, which XLA's CPU backend does two or three times faster.
    real = lambda z: jnp.concatenate([z.real, z.imag], axis=-1)
    keys, causal = real(tokens), jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))[None]
    attend = lambda queries: jnp.einsum("bti,bie->bte", jnp.where(causal, queries @ keys.swapaxes(1, 2), 0), keys)
    by_real, by_imaginary = attend(real(queries)), attend(real(-1j * queries))  # of the scores
    d2 = tokens.shape[-1]
    mixed = jax.lax.complex(by_real[..., :d2] - by_imaginary[..., d2:], by_real[..., d2:] + by_imaginary[..., :d2])[
        :, 1:
    ]
    return (mixed @ params.w_pv.T) / jnp.arange(1, x.shape[1] - 1, dtype=x.real.dtype)[None, :, None]


def loss(params: Params, x: Complex[Array, "B T D"]) -> Float[Array, ""]:
    """Half the squared error, summed over time and coordinates and averaged over sequences.

        L = mean_sequences sum_{t=2}^{T-1} |f_t - x_{t+1}|^2 / 2

    Args:
        params: Weights.
        x: Sequences.

    Returns:
        The loss.

    Example:
        >>> x = jnp.ones((1, 4, 2)) * (1 + 0j)
        >>> print(loss(init(2, 0.0, 0.0).params, x))
        2.0

    Source: the authors' code (main_train_ar.py), arXiv 2405.16845.
    """
    error = predict(params, x) - x[:, 2:]
    return 0.5 * jnp.sum(error.real**2 + error.imag**2) / x.shape[0]


def step(state: State, x: Complex[Array, "B T D"], learning_rate: float | Float[Array, ""]) -> tuple[State, Info]:
    """One step of gradient descent on real and imaginary parts of every entry of both matrices.

    Args:
        state: From `init` or the previous step.
        x: Sequences.
        learning_rate: Gradient-flow time that passes in the step.

    Returns:
        The next state, and the loss and gradient norm at the given one.

    Example:
        >>> x = jnp.ones((1, 4, 2)) * (1 + 0j)
        >>> state, info = step(init(2, 0.1, 0.1), x, 0.1)
        >>> bool(loss(state.params, x) < info.loss)
        True
    """
    value, gradient = jax.value_and_grad(loss)(state.params, x)
    # JAX's gradient with respect to z is d/dRe z - i d/dIm z, so descent goes along its conjugate.
    params = jax.tree.map(lambda p, g: p - learning_rate * g.conj(), state.params, gradient)
    return State(params, state.step + 1), Info(value, _norm(gradient))


def _norm(params: Params) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(w) ** 2) for w in params))
