"""Weights that are products of features of queries and of keys."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.linear._attend import attend
from attnjax.linear._run import Normalize, Outputs


def elu_plus_one(x: Float[Array, "*A H"]) -> Float[Array, "*A H"]:
    """``elu(x) + 1``: positive, and linear for positive x.

    Source: Katharopoulos et al., 2020, arXiv 2006.16236.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> [round(float(x), 4) for x in linear.elu_plus_one(jnp.array([-1.0, 0.0, 2.0]))]
    [0.3679, 1.0, 3.0]
    """
    return jax.nn.elu(x) + 1


def taylor_features(x: Float[Array, "*A H"], order: int = 2) -> Float[Array, "*A F"]:
    """Features with ``<phi(x), phi(y)> = 1 + <x, y>`` (order 1), or ``1 + <x, y> + <x, y>^2 / 2`` (order 2).

    Source: the expansion of exp; as in Fastmax, Gerami et al., 2024, arXiv 2402.07901, and Based, Arora et al., 2024,
    arXiv 2402.18668. Deviation: products are taken once, ``x_i x_j`` for i < j, so there are 1 + H + H (H + 1) / 2.

    Args:
        x: ``[*A, H]``.
        order: 1 or 2.

    Raises:
        ValueError: another order, whose weights may be negative (3), or too many features (4).

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = linear.taylor_features(jnp.array([1.0, 2.0]))
    >>> round(float(x @ x), 3) == 1 + 5 + 12.5
    True
    """
    if order not in (1, 2):
        raise ValueError(f"taylor_features(order={order}): want 1 or 2")
    first = jnp.concatenate([jnp.ones_like(x[..., :1]), x], -1)
    if order == 1:
        return first
    rows, cols = jnp.triu_indices(x.shape[-1], 1)
    return jnp.concatenate([first, x**2 * 2**-0.5, x[..., rows] * x[..., cols]], -1)


def linear_attention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    feature_map: Callable[[Array], Array] = elu_plus_one,
    normalize: Normalize | None = "row",
    eps: float | int = 0.0,
    **run: Any,
) -> Outputs:
    """``o_t = sum_s <phi(q_t), phi(k_s)> v_s / sum_s <phi(q_t), phi(k_s)>`` over the keys so far.

    Source: Katharopoulos et al., 2020, Transformers are RNNs, arXiv 2006.16236. Where features may be negative the
    divisor can be zero: ``normalize=None``, and a norm after it.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        feature_map: of the last axis.
        normalize: "row", or None for the sum alone.
        eps: added to the divisor.
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.linear_attention(x, x, x), x))
    True
    """
    return attend(feature_map(q), feature_map(k), v, normalize=normalize, eps=eps, **run)


def fastmax(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    order: int = 2,
    scale: float | int | None = None,
    **run: Any,
) -> Outputs:
    """Softmax with its exponential cut off: weights ``f(x) / sum f(x)``, ``f(x) = 1 + x + x^2 / 2`` of the score.

    Of order 2 all weights are positive (f is at least 1/2); of order 1 they need not be.

    Source: Gerami et al., 2024, FAST: Factorizable Attention, arXiv 2402.07901. Deviation: queries and keys are not
    standardized here; their code divides by a multiple of sqrt(H).

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        order: 1 or 2.
        scale: positive; by default 1 / sqrt(H).
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.fastmax(x, x, x), x))
    True
    """
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not factor > 0:
        raise ValueError(f"fastmax(scale={scale}): want a positive number; half of it goes to each side as a root")
    features = lambda x: taylor_features(x * jnp.asarray(factor**0.5, x.dtype), order)
    return attend(features(q), features(k), v, normalize="row", **run)


_SLOPE, _OFFSET = 0.14855178144710912, -0.35487039130661086
"""Of the authors' line from ``alpha^2 var(q) + beta^2 var(k)`` to the variance of the logs of the weights."""


def log_normal_scales(
    q_std: Float[Array, "*A"], k_std: Float[Array, "*A"]
) -> tuple[Float[Array, "*A"], Float[Array, "*A"]]:
    """``alpha`` and ``beta`` at which weights of exponential features vary as those of softmax do,

        alpha = s / std(q),    beta = s / std(k),    s^2 = (var(q) var(k) - b) / (2 a),

    with the authors' a and b.

    Source: Nahshan et al., 2023, Linear Log-Normal Attention, arXiv 2311.13541, and the authors' code. Deviation: the
    standard deviations are arguments, since those of a whole sequence know its future.

    Args:
        q_std: of queries; positive.
        k_std: of keys; positive.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> round(float(linear.log_normal_scales(jnp.ones(()), jnp.ones(()))[0]), 3)
    2.135
    """
    scale = jnp.sqrt((q_std**2 * k_std**2 - _OFFSET) / (2 * _SLOPE))
    return jax.lax.stop_gradient((scale / q_std, scale / k_std))


def log_normal(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    alpha: float | int | Float[Array, ""] = 1.0,
    beta: float | int | Float[Array, ""] = 1.0,
    **run: Any,
) -> Outputs:
    """Exponential features: weights ``w_ts / sum_s w_ts``, ``w_ts = sum_h exp(alpha q_th + beta k_sh)``, of any size.

    Source: Nahshan et al., 2023, Linear Log-Normal Attention, arXiv 2311.13541. Deviation: the greatest key so far is
    kept in the state's log scale, so no maximum over the future is needed; nothing is added to the divisor.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        alpha: as ``log_normal_scales`` gives it.
        beta: likewise.
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.log_normal(x, 90 * x, x), x))
    True
    """
    logits = jnp.asarray(alpha, q.dtype) * q
    reader = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True)))
    return attend(reader, jnp.ones_like(k), v, log_write=jnp.asarray(beta, k.dtype) * k, normalize="row", **run)


def weights(
    q: Float[Array, "*B T N H"], k: Float[Array, "*B S K H"], mechanism: Callable = attend, **knobs: Any
) -> Float[Array, "*B N T S"]:
    """The matrix ``W`` with ``o = W v`` of any mechanism of this module, found by giving it unit vectors as values.

    O(T S) memory; what a delta rule reads of each value, too.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, S, K, H]``; S is T where the mechanism is causal.
        mechanism: a function ``(q, k, v, ...)``.
        knobs: its other arguments.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((3, 1, 4))
    >>> [[round(float(w), 2) for w in row] for row in linear.weights(x, x, linear.linear_attention)[0]]
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.33, 0.33, 0.33]]
    """
    length = k.shape[-3]
    unit = jnp.broadcast_to(jnp.eye(length, dtype=k.dtype)[:, None, :], (*k.shape[:-1], length))
    return jnp.moveaxis(mechanism(q, k, unit, **knobs), -2, -3)
